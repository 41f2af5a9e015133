"""One request many times among others, on a GPU: how many different answers, with deterministic inference and without.

    python -m benchmarks.gpu.determinism --model-path DIRECTORY_WITH_CONFIG [--runs 200] [--layers 8]

Random weights. The request (300 tokens, seeded, temperature 1; tokens and log-probabilities are compared to the last bit) meets neighbours of
random lengths; its prompt comes in pieces of at most 200 tokens, and is in the cache whole, in part, or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.request import Generation, LogprobParams, SamplingParams

PROMPT = tuple((7919 * i + 13) % 1000 for i in range(300))
SAMPLING = SamplingParams(max_new_tokens=24, temperature=1.0, top_p=0.95, seed=11, ignore_eos=True)
Answer = tuple[tuple[int, float | None], ...]


async def one(engine: AsyncEngine, name: str) -> Answer:
    delta = await engine.complete(Generation(request_id=name, input_ids=PROMPT, sampling=SAMPLING, logprobs=LogprobParams()))
    return tuple((entry.token_id, entry.logprob) for entry in delta.logprobs)


async def neighbour(engine: AsyncEngine, name: str, chance: random.Random) -> None:
    prompt = PROMPT[: chance.randrange(300)] if chance.random() < 0.5 else ()
    prompt += tuple(chance.randrange(1000) for _ in range(chance.randrange(1, 400)))
    sampling = SamplingParams(max_new_tokens=chance.randrange(1, 60), temperature=chance.choice((0.0, 1.5)), ignore_eos=True)
    await engine.complete(Generation(request_id=name, input_ids=prompt, sampling=sampling))


async def answers(engine: AsyncEngine, runs: int) -> Counter[Answer]:
    chance, found, number = random.Random(5), Counter[Answer](), 0
    while found.total() < runs:
        if chance.random() < 0.4:
            await engine.flush_cache()
        number += 1
        others = [neighbour(engine, f"n{number}-{i}", chance) for i in range(chance.choice((0, 3, 20, 90)))]
        running = [asyncio.create_task(other) for other in others]
        found.update(await asyncio.gather(*(one(engine, f"o{number}-{i}") for i in range(chance.randrange(1, 5)))))
        await asyncio.gather(*running)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    for deterministic in (True, False):
        options = {
            "model_path": args.model_path, "load_format": "dummy", "dtype": "bfloat16", "device": "cuda", "grammar_backend": "none",
            "log_level": "error", "chunked_prefill_size": 200, "context_length": 4096, "max_total_tokens": 40000,
            "json_model_override_args": json.dumps({"num_hidden_layers": args.layers}), "enable_deterministic_inference": deterministic,
        }  # fmt: skip
        engine = AsyncEngine.start_now(EngineConfig.from_options(options), text_factory="benchmarks.gpu.peer_factory:no_text")
        began = time.perf_counter()
        found = asyncio.run(answers(engine, args.runs))
        texts = len({tuple(token for token, _ in answer) for answer in found})
        print(
            f"deterministic {'on' if deterministic else 'off':>3}: {found.total()} runs, {len(found)} different answers ({texts} by their "
            f"tokens alone), {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        engine.close_now()


if __name__ == "__main__":
    main()
