"""What the cache gives those who talk to it, on the real engine: chats, agents, offline batches, a saturating load, a restart.

    python -m benchmarks.cached_chat [chat] [traces] [offline] [bound] [restart]

chat     turns of several conversations, interleaved: hit rate against a cache that knows only whole prompts; first token by turn
traces   seeded traces of chats and agents: hit rate against the best that anybody could have
offline  a batch of prompts over shared prefixes: prompt tokens computed against the edges of their radix tree
bound    tokens of one stream while long prompts never end, with --max-inter-token-seconds and without
restart  the first token of a long prompt after a restart, with KV on disk and without
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ramet.runtime.engine.engine import Engine

WORDS = ("root", "shoot", "leaf", "stem", "branch", "twig", "seed", "bark", "moss", "fern", "lichen", "spore", "pollen", "petal", "thorn")
RULES = "You are a gardener. Answer shortly. Say what you know and what you do not. " * 6
QUIET: dict[str, Any] = {"log_level": "error"}


def prose(dice: random.Random, num_words: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(num_words))


async def first_token(engine: Engine, prompt: str, new: int) -> tuple[float, dict[str, Any]]:
    """Seconds to the first token as the client sees them, and the last reply."""
    began, first, last = time.perf_counter(), 0.0, {}
    stream = await engine.async_generate(prompt, {"max_new_tokens": new, "temperature": 0, "ignore_eos": True}, stream=True)
    async for reply in stream:  # type: ignore[union-attr]
        first, last = first or time.perf_counter() - began, reply
    return first, last


class WholePrompts:
    """A cache that finds a prompt only if it was asked before, to the last token."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.found = self.asked = 0

    def ask(self, prompt: str, num_tokens: int) -> None:
        self.asked += num_tokens
        self.found += num_tokens * (prompt in self._seen)
        self._seen.add(prompt)


async def talk(engine: Engine, number: int, turns: int, exact: WholePrompts, asked_twice: float) -> list[tuple[float, int, int]]:
    """One conversation: per turn (seconds to the first token, prompt tokens, cached tokens). Some turns are asked twice, as users do."""
    dice = random.Random(number)
    text, seen = f"{RULES}\nConversation {number}.\n", []
    for _ in range(turns):
        text += f"User: {prose(dice, 24)}\nGardener:"
        for _ in range(1 + (dice.random() < asked_twice)):
            seconds, reply = await first_token(engine, text, 24)
            meta = reply["meta_info"]
            exact.ask(text, meta["prompt_tokens"])
            seen.append((seconds, meta["prompt_tokens"], meta["cached_tokens"]))
        text += reply["text"] + "\n"
    return seen


def chat(conversations: int = 8, turns: int = 8) -> None:
    exact = WholePrompts()
    with Engine(**QUIET) as engine:
        asyncio.run(talk(engine, 99, 1, WholePrompts(), 0.0))  # what only the first request pays
        engine.flush_cache()
        alone = asyncio.run(talk(engine, 0, turns, WholePrompts(), 0.0))
        engine.flush_cache()

        async def together() -> list[list[tuple[float, int, int]]]:
            return await asyncio.gather(*(talk(engine, number, turns, exact, 0.25) for number in range(conversations)))

        found = [turn for each in asyncio.run(together()) for turn in each]
    rate, whole = sum(cached for *_, cached in found) / sum(prompt for _, prompt, _ in found), exact.found / exact.asked
    print(f"chat: {conversations} conversations of {turns} turns, a quarter of the turns asked twice")
    print(f"  hit rate {100 * rate:.1f} %; of a cache of whole prompts {100 * whole:.1f} %: {rate / whole:.1f} times")
    print("  first token alone, by turn, ms: " + "  ".join(f"{1e3 * seconds:.0f} ({prompt})" for seconds, prompt, _ in alone))
    print(f"  turn {turns} takes {alone[-1][0] / alone[0][0]:.2f} of turn 1", flush=True)


async def agent(engine: Engine, number: int, steps: int) -> None:
    dice = random.Random(1000 + number)
    text = f"{RULES}\nTools: search, read.\nTask: {prose(dice, 60)}\n"
    for _ in range(steps):
        _, reply = await first_token(engine, text + "Thought:", 16)
        text += f"Thought:{reply['text']}\nFound: {prose(dice, 40)}\n"
        await asyncio.sleep(dice.random() * 0.05)


def traces() -> None:
    for name, pool in (("roomy", 65536), ("tight", 3072)):
        with Engine(**QUIET, max_total_tokens=pool) as engine:

            async def chats(engine: Engine = engine) -> None:
                await asyncio.gather(*(talk(engine, number, 6, WholePrompts(), 0.1) for number in range(10)))

            async def agents(engine: Engine = engine) -> None:
                await asyncio.gather(*(agent(engine, number, 5) for number in range(12)))

            asyncio.run(chats())
            asyncio.run(agents())
            best = engine.cache_report()["optimality"]
        print(
            f"traces, {name} ({pool} tokens): hit rate {100 * best['hit_rate']:.1f} % of {100 * best['best_hit_rate']:.1f} % possible: "
            f"{100 * best['share_of_best']:.1f} % of the best; computed {best['computed_over_edges']:.4f} × edges",
            flush=True,
        )


def offline() -> None:
    dice = random.Random(3)
    prompts = []
    for _ in range(6):
        shared = RULES + prose(dice, 80)
        for _ in range(4):
            middle = shared + "\n" + prose(dice, 40)
            prompts += [f"{middle}\nQ: {prose(dice, 10)}\nA:" for _ in range(5)]
    dice.shuffle(prompts)
    with Engine(**QUIET, max_total_tokens=65536) as engine:
        engine.generate(prompts, {"max_new_tokens": 2, "temperature": 0, "ignore_eos": True})
        best = engine.cache_report()["optimality"]
    print(
        f"offline: {len(prompts)} prompts, {best['prompt_tokens']} tokens; computed {best['computed_tokens']}, edges "
        f"{best['edge_tokens']}: {best['computed_over_edges']:.4f}",
        flush=True,
    )


async def gaps_under_load(engine: Engine, seconds: float) -> list[float]:
    """Between the tokens of one stream, while four clients send long prompts one after the other."""
    dice, running = random.Random(7), True

    async def load() -> None:
        while running:
            await engine.async_generate(prose(dice, 900), {"max_new_tokens": 1, "temperature": 0})

    loads = [asyncio.create_task(load()) for _ in range(4)]
    stream = await engine.async_generate("Once upon a time", {"max_new_tokens": 4000, "temperature": 0, "ignore_eos": True}, stream=True)
    times: list[float] = []
    began = time.perf_counter()
    async for _ in stream:  # type: ignore[union-attr]
        times.append(time.perf_counter())
        if times[-1] - began > seconds:
            break
    running = False
    await asyncio.gather(*loads)
    return [after - before for before, after in pairwise(times[8:])]


def bound(limit: float = 0.1, seconds: float = 12.0) -> None:
    for bound in (None, limit):
        with Engine(**QUIET, max_inter_token_seconds=bound) as engine:
            gaps = sorted(asyncio.run(gaps_under_load(engine, seconds)))
        print(
            f"bound {bound}: {len(gaps)} tokens beside endless prompts; time between two: median {1e3 * statistics.median(gaps):.0f} ms, "
            f"p99 {1e3 * gaps[int(0.99 * len(gaps))]:.0f} ms, worst {1e3 * gaps[-1]:.0f} ms",
            flush=True,
        )


def restart() -> None:
    prompt = RULES + prose(random.Random(5), 1200)
    with tempfile.TemporaryDirectory() as folder:
        tier = {"enable_hierarchical_cache": True, "hicache_storage_backend": "file", "hicache_storage_dir": folder}
        for name, options in (("without", {}), ("on disk, empty", tier), ("on disk, after a restart", tier)):
            with Engine(**QUIET, **options) as engine:
                asyncio.run(first_token(engine, "Warm up.", 2))
                seconds, reply = asyncio.run(first_token(engine, prompt, 8))
            meta = reply["meta_info"]
            cached = f"{meta['cached_tokens']} of {meta['prompt_tokens']} cached"
            print(f"restart, KV {name}: first token {1e3 * seconds:.0f} ms, {cached}", flush=True)


PARTS = {"chat": chat, "traces": traces, "offline": offline, "bound": bound, "restart": restart}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    for name in parser.parse_args(arguments).parts or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
