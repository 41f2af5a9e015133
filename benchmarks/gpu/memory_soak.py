"""Whether the automatic size of the KV pool leaves enough room for the worst that may run: everything at once, until the pool overflows.

    python -m benchmarks.gpu.memory_soak --model-path DIRECTORY_WITH_CONFIG [--seconds 60] [--extra '{"tp_size": 2}']

Random weights. Waves of requests of every kind come for as long as is asked: prompts of up to the whole context in largest chunks, as many
rows as fit, drawn with top-p from the whole vocabulary, penalties, log-probabilities of prompts and outputs, outputs so long that running
requests are retracted. Nothing may fail, and the least free memory of the device is told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.request import FinishKind, Generation, LogprobParams, SamplingParams

KINDS = ("drawn", "penalised", "logprobs", "everything")


class FreeMemory:
    """The least that nvidia-smi has seen free on any device, MiB."""

    def __init__(self) -> None:
        self.least = 1 << 40
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        words = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        while not self._stop.wait(0.05):
            answer = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            self.least = min(self.least, *(int(line) for line in answer.split()))


def sampling(kind: str, length: int, chance: random.Random) -> SamplingParams:
    if kind == "drawn":
        return SamplingParams(max_new_tokens=length, temperature=1.0, top_p=0.99, ignore_eos=True)
    if kind == "penalised":
        return SamplingParams(max_new_tokens=length, temperature=0.8, repetition_penalty=1.2, frequency_penalty=0.1, ignore_eos=True)
    return SamplingParams(max_new_tokens=length, temperature=chance.choice((0.0, 1.0)), ignore_eos=True)


def wave(kind: str, number: int, engine: AsyncEngine, chance: random.Random) -> list[Generation]:
    """As many requests as may run; with "everything" so many long ones among them that the pool overflows."""
    info, capacity = engine.model, engine.capacity
    found, long_tokens = [], 0
    for index in range(capacity.max_running):
        own = chance.choice(KINDS[:3]) if kind == "everything" else kind
        length, prompt_len = chance.randrange(16, 128), chance.randrange(32, 320)
        if kind == "everything" and index % 4 == 0 and long_tokens < 1.05 * capacity.num_tokens:
            prompt_len = chance.randrange(info.context_len // 2, info.context_len - length)
            long_tokens += prompt_len
        prompt = tuple(chance.randrange(info.vocab_size) for _ in range(prompt_len))
        logprobs = LogprobParams(chance.choice((-1, 0)) if prompt_len < 1024 else -1, 20) if own == "logprobs" else None
        found.append(
            Generation(request_id=f"{number}-{index}", input_ids=prompt, sampling=sampling(own, length, chance), logprobs=logprobs)
        )
    return found


async def soak(engine: AsyncEngine, seconds: float) -> Counter[str]:
    chance, ends, number, until = random.Random(9), Counter[str](), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        kind = KINDS[number % len(KINDS)]
        asked = wave(kind, number, engine, chance)
        began = time.monotonic()
        deltas = await asyncio.gather(*(engine.complete(generation) for generation in asked))
        for delta in deltas:
            assert delta.finish is not None
            ends[delta.finish.kind.name] += 1
            if delta.finish.kind is FinishKind.ERROR:
                print(f"{kind}: {delta.finish.message}", flush=True)
        print(
            f"{kind:9}: {len(asked)} requests, {sum(len(g.input_ids or ()) for g in asked)} prompt tokens, {time.monotonic() - began:.1f} s",
            flush=True,
        )
        number += 1
    return ends


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--extra", type=json.loads, default={})
    args = parser.parse_args(arguments)
    options = {
        "model_path": args.model_path, "load_format": "dummy", "dtype": "bfloat16", "device": "cuda", "grammar_backend": "none",
        "log_level": "info", **args.extra,
    }  # fmt: skip
    engine = AsyncEngine.start_now(EngineConfig.from_options(options), text_factory="benchmarks.gpu.peer_factory:no_text")
    memory = FreeMemory()
    try:
        ends = asyncio.run(soak(engine, args.seconds))
    finally:
        memory.close()
        engine.close_now()
    print(f"ends: {dict(ends)}; never less than {memory.least} MiB of the device free")
    if set(ends) != {"LENGTH"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
