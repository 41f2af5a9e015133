"""Plain requests while 64 different schemas arrive at once, hostile ones among them: do they keep their rate?

    python -m benchmarks.grammar.burst [--rounds 3] [--seconds 12] [--streams 4]

Streams of free text run all the time. In windows of equal length, in turn: nothing else happens; 64 plain requests arrive for one token
each; 64 constrained requests arrive for one token each, every one with a schema that was never seen. The rate of the streams in the third
kind of window over that in the others is what the arrival of grammars costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from typing import Any

from benchmarks.function_calls import function_schema
from ramet.errors import RametError
from ramet.runtime.engine.engine import Engine

NUM_ARRIVALS = 64
PROMPT = "Write a long story about a lighthouse keeper and the sea. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12, help="of a window")
    parser.add_argument("--streams", type=int, default=4)
    args = parser.parse_args()
    with Engine(max_total_tokens=16384, context_length=4096, max_running_requests=80, log_level="error") as engine:
        rates = asyncio.run(Burst(engine, args.streams).run(args.rounds, args.seconds))
    for name, found in rates.items():
        print(f"{name:<28} {statistics.median(found):7.1f} tokens/s  ({', '.join(f'{rate:.1f}' for rate in found)})")
    alone, plain, constrained = (statistics.median(found) for found in rates.values())
    print(f"beside 64 grammars: {constrained / alone:.0%} of the rate alone, {constrained / plain:.0%} of that beside 64 plain requests")


class Burst:
    def __init__(self, engine: Engine, num_streams: int) -> None:
        self._engine = engine
        self._num_streams = num_streams
        self._num_tokens = 0
        self._fresh = iter(range(10**9))

    async def run(self, rounds: int, seconds: float) -> dict[str, list[float]]:
        streams = [asyncio.create_task(self._stream(index)) for index in range(self._num_streams)]
        await asyncio.sleep(3)
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, arrivals in (("alone", []), ("beside 64 plain requests", plain()), ("beside 64 grammars", self._grammars())):
                rate, outcome = await self._window(arrivals, seconds)
                rates.setdefault(name, []).append(rate)
                print(f"  {name}: {rate:.1f} tokens/s {outcome}", flush=True)
        for stream in streams:
            stream.cancel()
        return rates

    async def _stream(self, index: int) -> None:
        while True:
            sampling = {"temperature": 0.8, "max_new_tokens": 512, "ignore_eos": True}
            replies: Any = await self._engine.async_generate(PROMPT + str(index), sampling, stream=True)
            seen = 0
            async for reply in replies:
                self._num_tokens += reply["meta_info"]["completion_tokens"] - seen
                seen = reply["meta_info"]["completion_tokens"]

    async def _window(self, arrivals: list[dict[str, Any]], seconds: float) -> tuple[float, str]:
        start, before = time.monotonic(), self._num_tokens
        tasks = [asyncio.create_task(self._one(sampling, start)) for sampling in arrivals]
        await asyncio.sleep(seconds)
        rate = (self._num_tokens - before) / (time.monotonic() - start)
        found = await asyncio.gather(*tasks)
        kinds, times = Counter(kind for kind, _ in found), sorted(taken for _, taken in found)
        return rate, f"{dict(kinds)}, half of them after {times[len(times) // 2]:.1f} s, all after {times[-1]:.1f} s" if times else ""

    async def _one(self, sampling: dict[str, Any], start: float) -> tuple[str, float]:
        try:
            await self._engine.async_generate("Arguments: ", {"max_new_tokens": 1, **sampling})
            kind = "answered"
        except RametError as error:
            kind = error.message.partition(": ")[2][:40]
        return kind, time.monotonic() - start

    def _grammars(self) -> list[dict[str, Any]]:
        """None was seen before."""
        number = next(self._fresh)
        hostile = hostile_constraints(number)
        ordinary = [{"json_schema": json.dumps(function_schema(1000 * number + index))} for index in range(NUM_ARRIVALS - len(hostile))]
        found = hostile + ordinary
        random.Random(number).shuffle(found)
        return found


def plain() -> list[dict[str, Any]]:
    return [{}] * NUM_ARRIVALS


def hostile_constraints(number: int) -> list[dict[str, Any]]:
    nested: Any = {"type": "integer", "maximum": number}
    for depth in range(16):
        nested = {"oneOf": [nested, {"type": "object", "properties": {"k": {"const": f"{number} {depth}"}}, "required": ["k"]}]}
    tree = {"type": "object", "properties": {f"left{number}": {"$ref": "#"}, "right": {"$ref": "#"}}}
    list_or_tree = {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"const": number}]}
    choices = [f"choice {number} {index}" for index in range(10_000)]
    schemas = [
        nested,
        {"enum": choices},
        tree | {"required": []},
        list_or_tree,
        {"type": "string", "pattern": f"^(a{{1,{900 + number}}}){{1,90}}$"},
    ]
    regexes = [f"(?:a{{1000}}){{{1000 + number}}}", f"(?:[ab]{{0,{5000 + number}}}c){{0,2000}}", f"x{{0,{60_000 + number}}}y"]
    return [{"json_schema": json.dumps(schema)} for schema in schemas] + [{"regex": regex} for regex in regexes]


if __name__ == "__main__":
    main()
