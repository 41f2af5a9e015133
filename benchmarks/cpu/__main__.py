"""Ramet on this machine's cores beside llama.cpp and OpenVINO GenAI: the same GGUF file, the same token ids, one run.

    python -m benchmarks.cpu                                   # everything; about ten minutes on a quiet machine
    python -m benchmarks.cpu --only prefill "shared prefix"    # some workloads
    python -m benchmarks.cpu --quick                           # tiny sizes, one round: does everything run

The first run installs the peers into ~/.cache/ramet/peers (llama.cpp is built from source for this machine, ten minutes or more). Each
engine has a process of its own, which is stopped while another is measured; they alternate in every round, and medians are shown. A peer
that could not be installed, or that failed, is shown as such. Figures count only on a quiet machine; the last line says how quiet it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.cpu.engines import ENGINES, OURS
from benchmarks.cpu.floors import Floor, Machine, model_cost
from benchmarks.cpu.install_peers import peers_dir
from benchmarks.cpu.measure import START_UP, Bench, Findings
from benchmarks.cpu.plots import workload_plot
from benchmarks.cpu.report import Row, make_rows, table
from benchmarks.cpu.workloads import QUICK, Sizes, Workload, workloads
from ramet.runtime.model_files import locate_model
from ramet.runtime.text.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent.parent
RESULTS, QUICK_RESULTS = ROOT / "benchmarks" / "results", ROOT / "out" / "cpu"
TIMEOUT_S, QUICK_TIMEOUT_S = 240.0, 60.0


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # through the context managers: no engine stays behind, asleep
    options = _options([workload.name for workload in workloads(Sizes(), load_tokenizer(locate_model(None)))])
    files, sizes = locate_model(options.model_path), QUICK if options.quick else Sizes()
    every = workloads(sizes, load_tokenizer(files))
    chosen = [workload for workload in every if not options.only or workload.name in options.only]
    engines = [OURS, *options.peers]
    peers_dir().mkdir(parents=True, exist_ok=True)
    bench = Bench(files.path, peers_dir(), QUICK_TIMEOUT_S if options.quick else TIMEOUT_S, restarts=not options.quick)
    findings = bench.run(engines, chosen, options.rounds or (1 if options.quick else 3))
    cores = len(os.sched_getaffinity(0))
    floor = Floor(Machine(cores, options.read_gb_s, options.int8_gmac_s, options.float_gflop_s), model_cost(files.path))
    shown = [*chosen, START_UP]
    rows = make_rows(findings, shown, floor)
    text = table(rows, engines, findings)
    _write(options.output or (QUICK_RESULTS if options.quick else RESULTS), shown, rows, text, _report(findings, rows, floor, sizes))
    print("\n" + text)


def _options(names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = [name for name in ENGINES if name != OURS]
    rates = Machine(1)
    parser.add_argument("--model-path", help="a GGUF file that all engines can read; default: the embedded model")
    parser.add_argument("--rounds", type=int, help="of the alternation; default: 3, with --quick 1")
    parser.add_argument("--only", nargs="+", choices=names, metavar="WORKLOAD", help=f"some of: {', '.join(names)}")
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="default: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, for a smoke test; results go to out/cpu")
    parser.add_argument("--output", type=Path, help="folder for the results; default: benchmarks/results")
    parser.add_argument("--read-gb-s", type=float, default=rates.read_gb_s, help="for the floors: this machine's reads, all cores")
    parser.add_argument("--int8-gmac-s", type=float, default=rates.int8_gmac_s, help="for the floors: int8 multiplications of a core")
    parser.add_argument("--float-gflop-s", type=float, default=rates.float_gflop_s, help="for the floors: float32 FMA of a core")
    return parser.parse_args()


def _report(findings: Findings, rows: Sequence[Row], floor: Floor, sizes: Sizes) -> dict[str, object]:
    return {
        "machine": {"platform": platform.platform(), "processor": _processor(), **asdict(floor.machine)},
        "model": asdict(floor.model),
        "sizes": asdict(sizes),
        "engines": findings.about,
        "share_of_cores_used_by_others": findings.others,
        "failures": findings.failures,
        "figures": [row.data() for row in rows],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def _write(folder: Path, shown: Sequence[Workload], rows: Sequence[Row], text: str, report: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.md").write_text(text)
    (folder / "cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    for workload in shown:
        mine = [row for row in rows if row.workload == workload.name]
        (folder / f"cpu_{workload.name.replace(' ', '_').lower()}.svg").write_text(workload_plot(workload.name, mine))


if __name__ == "__main__":
    main()
