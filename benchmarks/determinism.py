"""One request, a thousand times, among other requests: how many different answers?

    python -m benchmarks.determinism                # with --enable-deterministic-inference, and without
    python -m benchmarks.determinism --runs 200

Each run of the one prompt (seeded, temperature 1; tokens and log-probabilities are compared to the last bit) meets random neighbours,
some of which are aborted. The cache is warm with the whole prompt, with a part of it, or empty; prompts come in chunks. The pool is so
small that running requests are retracted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from typing import Any

PROMPT = "A traveller came to the gate of the old city and asked the guard three questions. The guard thought for a while, " * 8
SAMPLING = {"max_new_tokens": 24, "temperature": 1.0, "sampling_seed": 11, "ignore_eos": True}
ENGINE: dict[str, Any] = {"log_level": "error", "chunked_prefill_size": 48, "max_total_tokens": 2000}
TOGETHER = 4  # of the one request, at once
Answer = tuple[tuple[int, float], ...]


async def one(engine: Any) -> Answer:
    reply = await engine.async_generate(PROMPT, SAMPLING, return_logprob=True)
    return tuple((token, logprob) for logprob, token, *_ in reply["meta_info"]["output_token_logprobs"])


async def neighbour(engine: Any, chance: random.Random) -> None:
    """Anything: a prompt that begins like ours or does not, short or long, that may be aborted on its way."""
    text = PROMPT[: chance.randrange(len(PROMPT))] if chance.random() < 0.5 else ""
    text += " ".join(chance.choice(("rain", "stone", "why", "seven", "blue")) for _ in range(chance.randrange(1, 60)))
    sampling = {"max_new_tokens": chance.randrange(1, 40), "temperature": chance.choice((0.0, 1.5)), "ignore_eos": True}
    name = f"neighbour-{chance.getrandbits(64)}"
    running = asyncio.create_task(engine.async_generate(text, sampling, rid=name))
    if chance.random() < 0.2:
        await asyncio.sleep(chance.random() * 0.1)
        await asyncio.to_thread(engine.abort_request, name)
    await asyncio.gather(running, return_exceptions=True)


async def answers(engine: Any, runs: int, chance: random.Random) -> Counter[Answer]:
    found: Counter[Answer] = Counter()
    while found.total() < runs:
        if chance.random() < 0.4:
            await asyncio.to_thread(engine.flush_cache)
        others = [asyncio.create_task(neighbour(engine, chance)) for _ in range(chance.randrange(12))]
        found.update(await asyncio.gather(*(one(engine) for _ in range(chance.randrange(1, TOGETHER + 1)))))
        await asyncio.gather(*others)
    return found


def measure(deterministic: bool, runs: int) -> tuple[Counter[Answer], float]:
    from ramet.runtime.engine.engine import Engine

    with Engine(enable_deterministic_inference=deterministic, **ENGINE) as engine:
        began = time.perf_counter()
        return asyncio.run(answers(engine, runs, random.Random(5))), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    for deterministic in (True, False):
        found, seconds = measure(deterministic, options.runs)
        texts = len({tuple(token for token, _ in answer) for answer in found})
        print(
            f"deterministic {'on' if deterministic else 'off':>3}: {found.total()} runs, {len(found)} different answers "
            f"({texts} by their tokens alone), {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
