"""RadixAttention on the embedded model: 8 groups × 8 prompts that share 512 tokens in a group, with and without the cache, in one run.

    python -m benchmarks.shared_prefix

Shows that the prompt tokens computed are exactly the edges of the prompts' radix tree (each shared prefix once, also though all 64 requests
arrive together), and how much throughput that brings. Exits with 1 if either falls short.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

LEAST_SPEEDUP = 3.0


def make_prompts(groups: int, per_group: int, prefix_len: int, suffix_len: int, seed: int = 7) -> list[list[int]]:
    """Random token ids, shuffled across groups. Suffixes differ from their first token on."""
    generator = random.Random(seed)
    found = []
    for _ in range(groups):
        prefix = [generator.randrange(1000, 40000) for _ in range(prefix_len)]
        firsts = generator.sample(range(1000, 40000), per_group)
        found += [[*prefix, first, *(generator.randrange(1000, 40000) for _ in range(suffix_len - 1))] for first in firsts]
    generator.shuffle(found)
    return found


def num_edge_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens on the edges of the prompts' radix tree: what has to be computed at least."""
    total, before = 0, []
    for prompt in sorted(map(list, prompts)):
        common = next((i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), min(len(before), len(prompt)))
        total += len(prompt) - common
        before = prompt
    return total


def measure(prompts: list[list[int]], output_len: int, **options: Any) -> tuple[float, int]:
    """Seconds, and prompt tokens computed."""
    from ramet import Engine

    engine = Engine(log_level="warning", **options)
    try:
        engine.generate(input_ids=[[1, 2, 3]], sampling_params={"max_new_tokens": 2})
        began = time.perf_counter()
        sampling = {"temperature": 0, "max_new_tokens": output_len, "ignore_eos": True}
        replies = engine.generate(input_ids=prompts, sampling_params=sampling)
        seconds = time.perf_counter() - began
    finally:
        engine.shutdown()
    meta = [reply["meta_info"] for reply in replies]
    return seconds, sum(m["prompt_tokens"] - m["cached_tokens"] for m in meta)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--per-group", type=int, default=8)
    parser.add_argument("--prefix-len", type=int, default=512)
    parser.add_argument("--suffix-len", type=int, default=16)
    parser.add_argument("--output-len", type=int, default=16)
    arguments = parser.parse_args()
    prompts = make_prompts(arguments.groups, arguments.per_group, arguments.prefix_len, arguments.suffix_len)
    least, total = num_edge_tokens(prompts), sum(map(len, prompts))
    cached_seconds, computed = measure(prompts, arguments.output_len)
    plain_seconds, plain_computed = measure(prompts, arguments.output_len, disable_radix_cache=True)
    print(f"prompt tokens: {total}; edges of their radix tree: {least}")
    print(f"with the cache:    {computed} computed, {cached_seconds:.2f} s, {total / cached_seconds:.0f} prompt tokens/s")
    print(f"without the cache: {plain_computed} computed, {plain_seconds:.2f} s, {total / plain_seconds:.0f} prompt tokens/s")
    print(f"speed-up: {plain_seconds / cached_seconds:.2f}×")
    return 0 if computed == least and plain_computed == total and plain_seconds >= LEAST_SPEEDUP * cached_seconds else 1


if __name__ == "__main__":
    sys.exit(main())
