"""How long `ramet serve` takes from its command to being ready (the first token has been generated, requests are accepted), what it has in
memory then, and how long `import ramet` takes.

    python benchmarks/start_up.py                               # the embedded default model, ten starts
    python benchmarks/start_up.py --against ../other-checkout   # alternating with another state of the code
    python benchmarks/start_up.py --runs 5 -- --model-path M    # options of the server

One start goes before the measured ones, so that files are in the system's cache, kernels are built and the tokenizer is converted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
READY = "Ramet Runtime initialized"
SERVE = "import sys; from ramet.cli.main import main; sys.exit(main(['serve', '--port', '0', *sys.argv[1:]]))"
IMPORT = "import time; began = time.perf_counter(); import ramet; print(time.perf_counter() - began)"


@dataclass(frozen=True, slots=True)
class Start:
    seconds: float
    front_mib: int
    worker_mib: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="of ramet serve")
    asked = parser.parse_args()
    checkouts = [HERE, *([asked.against.resolve()] if asked.against else [])]
    for checkout in checkouts:
        start(checkout, asked.options)
    found: dict[Path, list[Start]] = {checkout: [] for checkout in checkouts}
    for _ in range(asked.runs):
        for checkout in checkouts:
            found[checkout].append(start(checkout, asked.options))
    for checkout, starts in found.items():
        report(checkout, starts)
    return 0


def report(checkout: Path, starts: list[Start]) -> None:
    seconds = sorted(each.seconds for each in starts)
    imports = sorted(import_seconds(checkout) for _ in starts)
    front, worker = (max(getattr(each, name) for each in starts) for name in ("front_mib", "worker_mib"))
    print(f"{checkout}")
    print(f"  ready after {statistics.median(seconds):.2f} s (median of {len(seconds)}), {seconds[0]:.2f} to {seconds[-1]:.2f}")
    print(f"  resident then: front {front} MiB, worker {worker} MiB")
    print(f"  import ramet {statistics.median(imports) * 1000:.0f} ms")


def start(checkout: Path, options: list[str]) -> Start:
    """One start of the server, from the command to the line that says it is ready."""
    began = time.perf_counter()
    command = [sys.executable, "-c", SERVE, *options]
    server = subprocess.Popen(command, env=environment(checkout), cwd=tempfile.gettempdir(), stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = list(up_to(READY, server.stderr))
        seconds = time.perf_counter() - began
        if not said or READY not in said[-1]:
            raise SystemExit("the server did not start:\n" + "".join(said[-20:]))
        return Start(seconds, resident_mib(server.pid), resident_mib(worker_of(server.pid)))
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()


def up_to(mark: str, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if mark in line:
            return


def import_seconds(checkout: Path) -> float:
    done = subprocess.run([sys.executable, "-c", IMPORT], env=environment(checkout), capture_output=True, text=True, check=True)
    return float(done.stdout)


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


def worker_of(front: int) -> int:
    """Its only child; any of its threads may have started it."""
    (child,) = [int(child) for thread in Path(f"/proc/{front}/task").iterdir() for child in (thread / "children").read_text().split()]
    return child


def resident_mib(process: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) >> 10 if found else 0


if __name__ == "__main__":
    sys.exit(main())
