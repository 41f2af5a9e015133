"""python -m benchmarks.programs [--fake] [--rtt 0 5 50] [--workloads …]: latency and throughput of programs, compiled and interpreted.

Compiled programs run on the server, interpreted ones on the client, both against the same engine with prefix cache and continuous
batching on; distance is simulated by a proxy. Variants take turns, run by run; short programs are run more often. Results go to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import ramet as sgl
from benchmarks.programs.delay_proxy import delayed
from benchmarks.programs.measurement import Effort, Variant, compared, measure
from benchmarks.programs.plots import workload_plot
from benchmarks.programs.workloads import WORKLOADS, Workload
from ramet.compiler.default_order import PASS_NAMES

RESULTS = Path(__file__).parent.parent / "results"
ABLATION_RTT_MS = 5.0


def main() -> None:
    options = _options()
    chosen = [each for each in WORKLOADS if not options.workloads or each.name in options.workloads]
    with _server(options) as url:
        cells = asyncio.run(_measure_all(url, chosen, options))
    report = {
        "model": "fake" if options.fake else options.model or "SmolLM2-135M-Instruct",
        "machine": platform.platform(),
        "runs": options.runs,
        "together": options.together,
        "cells": cells,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    name = "programs_fake" if options.fake else "programs"
    (options.output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    for workload in chosen:
        mine = [cell for cell in cells if cell["workload"] == workload.name]
        (options.output / f"{name}_{workload.name}.svg").write_text(workload_plot(workload.name, mine))
    print(_table(cells, chosen))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fake", action="store_true", help="an engine without a model, for a smoke test")
    parser.add_argument("--endpoint", help="a running server, instead of starting one")
    parser.add_argument("--model", help="the model to serve (default: the embedded one)")
    parser.add_argument("--rtt", type=float, nargs="+", default=[0.0, 5.0, 50.0], help="round-trip times in ms")
    parser.add_argument("--runs", type=int, default=3, help="rounds in which every variant runs once, for the latency")
    parser.add_argument("--short-runs", type=int, default=15, help="rounds of programs that take less than 0.3 s")
    parser.add_argument("--together", type=int, default=6, help="runs at once, for the throughput")
    parser.add_argument("--workloads", nargs="*", help=f"some of: {', '.join(each.name for each in WORKLOADS)}")
    parser.add_argument("--no-ablation", action="store_true", help="leave out the runs without one pass")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    return parser.parse_args()


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[str]:
    if options.endpoint:
        yield options.endpoint
    elif options.fake:
        from tests.fakes import fake_engine
        from tests.server.live_server import live_server

        engine = fake_engine()
        try:
            with live_server(engine) as url:
                yield url
        finally:
            engine.close_now()
    else:
        with sgl.Runtime(model_path=options.model) as runtime:
            yield runtime.url


async def _measure_all(url: str, workloads: list[Workload], options: argparse.Namespace) -> list[dict[str, Any]]:
    direct, effort = sgl.RuntimeEndpoint(url), Effort(options.runs, options.short_runs, options.together)
    cells: list[dict[str, Any]] = []
    for workload in workloads:
        for rtt_ms in options.rtt:
            variants = list(_variants(workload, ablate=rtt_ms == ABLATION_RTT_MS and not options.no_ablation))
            async with _endpoint(url, rtt_ms) as endpoint:
                for cell in await measure(workload, variants, endpoint, direct, effort):
                    cells.append({"workload": workload.name, "rtt_ms": rtt_ms, "dependent": workload.dependent, **cell})
                    print(_line(cells[-1]), flush=True)
    await direct.close()
    return cells


@asynccontextmanager
async def _endpoint(url: str, rtt_ms: float) -> AsyncIterator[sgl.RuntimeEndpoint]:
    async with delayed(url, rtt_ms / 1000) as address:
        endpoint = sgl.RuntimeEndpoint(address)
        try:
            yield endpoint
        finally:
            await endpoint.close()


def _variants(workload: Workload, *, ablate: bool) -> Iterator[Variant]:
    """Passes whose absence changes nothing of this program are not measured."""
    program = workload.program
    yield Variant("interpreted", program, "interpreted")
    yield Variant("passes off", program.without_passes(*PASS_NAMES), "compiled")
    yield Variant("compiled", program, "compiled")
    for name in PASS_NAMES if ablate else ():
        ablated = program.without_passes(name)
        if ablated.compilation.get().digest != program.compilation.get().digest:
            yield Variant(f"without {name}", ablated, "compiled", alone=True)


def _line(cell: Mapping[str, Any]) -> str:
    spread = f"{min(cell['latencies_s']):.3f}–{max(cell['latencies_s']):.3f}"
    times = f"{cell['latency_s']:7.3f} s ({len(cell['latencies_s'])} runs, {spread})"
    return f"{cell['workload']:<20} {cell['rtt_ms']:>4g} ms  {cell['variant']:<30} {times}  {cell['programs_per_s']:7.2f}/s"


def _table(cells: list[dict[str, Any]], workloads: list[Workload]) -> str:
    """How many times lower the latency, and higher the throughput, of compiled against interpreted (and against passes off)."""
    lines = ["", f"{'workload':<20} {'calls':>5} {'away':>6}   latency × (middle half)   programs/s ×   (against passes off)"]
    for workload in workloads:
        for rtt in sorted({cell["rtt_ms"] for cell in cells}):
            by = {cell["variant"]: cell for cell in cells if (cell["workload"], cell["rtt_ms"]) == (workload.name, rtt)}
            ours, client, plain = by["compiled"], by["interpreted"], by["passes off"]
            ratio, low, high = compared(ours["latencies_s"], client["latencies_s"])
            rate, *_ = compared(ours["batches_s"], client["batches_s"])
            passes, *_ = compared(ours["latencies_s"], plain["latencies_s"])
            passes_rate, *_ = compared(ours["batches_s"], plain["batches_s"])
            lines.append(
                f"{workload.name:<20} {workload.dependent:>5} {rtt:>4g}ms {ratio:>9.2f}× ({low:.2f}–{high:.2f}) {rate:>12.2f}×"
                f"   ({passes:.2f}×, {passes_rate:.2f}×)"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
