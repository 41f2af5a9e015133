"""`ramet bench serving | offline | one-batch`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ramet.errors import ConfigError

KINDS = {
    "serving": ("ramet.cli.benchmark.serving", "load a running server (any backend) with a stream of requests"),
    "offline": ("ramet.cli.benchmark.offline", "throughput of an engine in this process, all requests at once"),
    "one-batch": ("ramet.cli.benchmark.one_batch", "latency of one static batch in this process: prefill, then decode steps"),
}


def run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: ramet bench KIND [options]   (ramet bench KIND --help says more)\n")
        print("\n".join(f"  {kind:<10} {text}" for kind, (_, text) in KINDS.items()))
        return 0
    kind = arguments[0].replace("_", "-")
    if kind not in KINDS:
        raise ConfigError(f"unknown benchmark '{arguments[0]}'; there are: {', '.join(KINDS)}")
    status: int = importlib.import_module(KINDS[kind][0]).run(list(arguments[1:]))
    return status
