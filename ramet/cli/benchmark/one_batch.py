"""`ramet bench one-batch`: one static batch through an engine in this process; prefill, then decode steps."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ramet import log
from ramet.cli.benchmark.in_process import parse, run_request
from ramet.cli.benchmark.report import append_jsonl
from ramet.cli.benchmark.targets import Outcome
from ramet.cli.benchmark.workloads import BenchRequest
from ramet.cli.flags import FlagParser
from ramet.errors import InternalError
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.generation_engine import GenerationEngine

DESCRIPTION = "Latency of one static batch in this process. Takes the engine's flags too."
OWN = ["batch_size", "input_len", "output_len", "seed", "result_filename"]
WARMUP_OUTPUT_LEN = 8


def run(arguments: Sequence[str]) -> int:
    args, config = parse(list(arguments), _add_flags, kind="one-batch", description=DESCRIPTION)
    log.configure(config.log.log_level)
    for result in asyncio.run(_start_and_bench(args, config)):
        _print(result)
        if args.result_filename:
            append_jsonl(Path(args.result_filename), result)
    return 0


def _add_flags(parser: FlagParser) -> list[str]:
    own = parser.add_argument_group("batch")
    own.add_argument("--batch-size", type=int, nargs="+", default=[1], help="sequences; several: one run each")
    own.add_argument("--input-len", type=int, nargs="+", default=[1024], help="prompt tokens per sequence")
    own.add_argument("--output-len", type=int, nargs="+", default=[16], help="output tokens per sequence")
    own.add_argument("--seed", type=int, default=1, help="seed of the prompts")
    own.add_argument("--result-filename", "--output-file", default="", help="append one JSON line per run")
    return OWN


async def _start_and_bench(args: argparse.Namespace, config: EngineConfig) -> list[dict[str, Any]]:
    engine = await AsyncEngine.start(config)
    try:
        shapes = [(b, i, o) for b in args.batch_size for i in args.input_len for o in args.output_len]
        await bench(engine, args.batch_size[0], args.input_len[0], min(WARMUP_OUTPUT_LEN, args.output_len[0]), args.seed)
        return [await bench(engine, *shape, args.seed) for shape in shapes]
    finally:
        await engine.close()


async def bench(engine: GenerationEngine, batch_size: int, input_len: int, output_len: int, seed: int) -> dict[str, Any]:
    """Prefill ends when the last sequence has its first token; a decode step is the gap between two tokens of a sequence."""
    await engine.flush_cache()
    rng = random.Random(seed)
    prompts = [tuple(rng.choices(range(engine.model.vocab_size), k=input_len)) for _ in range(batch_size)]
    requests = [BenchRequest(prompt, output_len) for prompt in prompts]
    outcomes = await asyncio.gather(*(run_request(engine, request, f"one-batch-{i}") for i, request in enumerate(requests)))
    failed = next((outcome.error for outcome in outcomes if outcome.error), None)
    if failed:
        raise InternalError(f"the batch failed: {failed}")
    return _result(outcomes, batch_size, input_len, output_len)


def _result(outcomes: Sequence[Outcome], batch_size: int, input_len: int, output_len: int) -> dict[str, Any]:
    started = min(outcome.started for outcome in outcomes)
    prefill = max(outcome.token_times[0] for outcome in outcomes) - started
    total = max(outcome.ended for outcome in outcomes) - started
    gaps = [b - a for o in outcomes for a, b in zip(o.token_times, o.token_times[1:], strict=False)]
    decode = statistics.median(gaps) if gaps else 0.0
    return {
        "batch_size": batch_size,
        "input_len": input_len,
        "output_len": output_len,
        "prefill_latency": prefill,
        "prefill_throughput": batch_size * input_len / prefill,
        "median_decode_latency": decode,
        "median_decode_throughput": batch_size / decode if decode else 0.0,
        "total_latency": total,
        "overall_throughput": batch_size * (input_len + output_len) / total,
    }


def _print(result: dict[str, Any]) -> None:
    print(f"Batch size: {result['batch_size']}, input: {result['input_len']}, output: {result['output_len']}")
    print(f"Prefill. latency: {result['prefill_latency']:7.5f} s, throughput: {result['prefill_throughput']:10.2f} token/s")
    median, rate = result["median_decode_latency"], result["median_decode_throughput"]
    print(f"Decode.  median latency: {median:7.5f} s, median throughput: {rate:10.2f} token/s")
    print(f"Total. latency: {result['total_latency']:7.3f} s, throughput: {result['overall_throughput']:10.2f} token/s")
