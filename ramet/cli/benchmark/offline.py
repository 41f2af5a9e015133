"""`ramet bench offline`: all requests at once into an engine in this process."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ramet import log
from ramet.cli.benchmark.in_process import parse, run_request
from ramet.cli.benchmark.report import append_jsonl, print_offline, summarize
from ramet.cli.benchmark.targets import Outcome
from ramet.cli.benchmark.traffic import drive
from ramet.cli.benchmark.workloads import add_workload_flags, build_workload
from ramet.cli.flags import FlagParser
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.generation_engine import GenerationEngine

DESCRIPTION = "Throughput of an engine in this process, all requests at once. Takes the engine's flags too."


def run(arguments: Sequence[str]) -> int:
    args, config = parse(list(arguments), _add_flags, kind="offline", description=DESCRIPTION)
    log.configure(config.log.log_level)
    outcomes, summary = asyncio.run(_start_and_bench(args, config))
    print_offline(summary)
    if args.result_filename:
        append_jsonl(Path(args.result_filename), {**vars(args), **summary})
    for error in dict.fromkeys(outcome.error for outcome in outcomes if outcome.error):
        print(f"failed: {error}", file=sys.stderr)
    return 0 if summary["failed"] == 0 else 1


def _add_flags(parser: FlagParser) -> list[str]:
    before = {action.dest for action in parser._actions}
    add_workload_flags(parser)
    parser.add_argument("--result-filename", "--output-file", default="", help="append one JSON line per run")
    parser.add_argument("--skip-warmup", action="store_true", default=False, help="no request before the clock starts")
    return [action.dest for action in parser._actions if action.dest not in before]


async def _start_and_bench(args: argparse.Namespace, config: EngineConfig) -> tuple[list[Outcome], dict[str, Any]]:
    engine = await AsyncEngine.start(config)
    try:
        return await bench(args, engine)
    finally:
        await engine.close()


async def bench(args: argparse.Namespace, engine: GenerationEngine) -> tuple[list[Outcome], dict[str, Any]]:
    requests = build_workload(args, engine.model.vocab_size)
    if not args.skip_warmup:
        await run_request(engine, requests[0], "warm-up")
        await engine.flush_cache()
    numbers = itertools.count()
    started = time.perf_counter()
    outcomes = await drive(requests, lambda request: run_request(engine, request, f"bench-{next(numbers)}"))
    summary = summarize(outcomes, time.perf_counter() - started)
    return outcomes, summary | {"last_gen_throughput": (await engine.stats()).gen_throughput}
