"""Plain requests while 64 different schemas arrive at once, hostile ones among them: do they keep their rate?

    python -m benchmarks.grammar.burst [--servers 2] [--rounds 3] [--seconds 8] [--streams 4] [--new-tokens 1]

Streams of free text run all the time. In windows, in turn: nothing else happens; 64 constrained requests arrive, every one with a schema
that was never seen; nothing else happens; 64 plain requests arrive with the same prompt for as many tokens. A window lasts until all that
arrived in it are answered, and `--seconds` at least: the rate of the streams counts over all of it. It is held against that of the quiet
windows on both sides, since the pace of a machine changes. The first burst of every fresh server is shown apart.

What the 64 take of the model themselves is in their window, too (with one token each next to nothing): the rate beside 64 plain requests
says how much that is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.function_calls import function_schema
from ramet.errors import RametError
from ramet.runtime.engine.engine import Engine

NUM_ARRIVALS = 64
PROMPT = "Write a long story about a lighthouse keeper and the sea. "


@dataclass
class Kept:
    """Rates of the streams over those of the quiet windows beside."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=2, help="started one after the other")
    parser.add_argument("--rounds", type=int, default=3, help="on each")
    parser.add_argument("--seconds", type=float, default=8, help="of a window, at least")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=1, help="of each request that arrives, at most")
    args = parser.parse_args()
    kept = Kept()
    for _ in range(args.servers):
        with Engine(max_total_tokens=16384, context_length=4096, max_running_requests=80, log_level="error") as engine:
            asyncio.run(Burst(engine, args.streams, args.new_tokens).run(args.rounds, args.seconds, kept))
    for name, found in (("first burst of a server", kept.first), ("later bursts", kept.later), ("64 plain requests", kept.plain)):
        if found:
            each = ", ".join(f"{share:.0%}" for share in found)
            print(f"{name}: {statistics.median(found):.0%} of the rate alone, in the median of {len(found)} ({each})")


class Burst:
    def __init__(self, engine: Engine, num_streams: int, new_tokens: int = 1) -> None:
        self._engine = engine
        self._num_streams = num_streams
        self._new_tokens = new_tokens
        self._num_tokens = 0
        self._fresh = iter(range(10**9))

    async def run(self, rounds: int, seconds: float, kept: Kept) -> None:
        streams = [asyncio.create_task(self._stream(index)) for index in range(self._num_streams)]
        await asyncio.sleep(3)
        before = await self._window("alone", [], seconds)
        for number in range(rounds):
            for name, arrivals in (("64 grammars", self._grammars()), ("64 plain requests", plain())):
                beside = await self._window(name, arrivals, seconds)
                after = await self._window("alone", [], seconds)
                of_name = kept.plain if name == "64 plain requests" else kept.later if number else kept.first
                of_name.append(beside / statistics.mean((before, after)))
                before = after
        for stream in streams:
            stream.cancel()

    async def _stream(self, index: int) -> None:
        while True:
            sampling = {"temperature": 0.8, "max_new_tokens": 512, "ignore_eos": True}
            replies: Any = await self._engine.async_generate(PROMPT + str(index), sampling, stream=True)
            seen = 0
            async for reply in replies:
                self._num_tokens += reply["meta_info"]["completion_tokens"] - seen
                seen = reply["meta_info"]["completion_tokens"]

    async def _window(self, name: str, arrivals: list[dict[str, Any]], seconds: float) -> float:
        start, before = time.monotonic(), self._num_tokens
        tasks = [asyncio.create_task(self._one(sampling, start)) for sampling in arrivals]
        await asyncio.sleep(seconds)
        found = await asyncio.gather(*tasks)
        rate = (self._num_tokens - before) / (time.monotonic() - start)
        kinds, times = Counter(kind for kind, _ in found), sorted(taken for _, taken in found)
        answered = f", {dict(kinds)}, half of them after {times[len(times) // 2]:.1f} s, all after {times[-1]:.1f} s" if times else ""
        print(f"  {name}: {rate:.1f} tokens/s{answered}", flush=True)
        return rate

    async def _one(self, sampling: dict[str, Any], start: float) -> tuple[str, float]:
        try:
            await self._engine.async_generate("Arguments: ", {"max_new_tokens": self._new_tokens, **sampling})
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
    return [{"ignore_eos": True}] * NUM_ARRIVALS


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
