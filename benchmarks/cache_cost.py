"""What scheduler and cache cost per step, with many cached tokens in the tree and 32 requests that decode.

    python benchmarks/cache_cost.py [--cached-tokens 100000] [--running 32] [--step-ms 5.5]

Prints microseconds per step of three phases, for several page sizes, with an empty tree and a full one, with the radix cache and
without: all of plan and commit, and of that what is spent inside the cache. What grows with the tree would show between the rows.
`--step-ms` is the model step to compare the cache with: 5.5 ms is an 8B model in bf16 on one H200, a small model on a CPU takes 100.

  decode    every running request decodes one token
  arrivals  besides, in every step one request ends and one arrives whose long prefix is cached (match, split, lock, insert)
  evicting  as arrivals, with a pool so small that every new page must be evicted first
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.no_cache import NoCache
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.config import ScheduleConfig
from ramet.runtime.plan import BatchPlan, Capacity, RowResult, StepResult
from ramet.runtime.request import Request, SamplingParams
from ramet.runtime.scheduler.scheduler import Scheduler

VOCAB_SIZE = 32_000
PREFIX_LEN, TAIL_LEN = 512, 512
PROMPT_TAIL = 24


@dataclass(frozen=True, slots=True)
class Case:
    page_size: int
    cached_tokens: int
    radix: bool
    phase: str
    num_running: int


def build(case: Case) -> tuple[Scheduler, list[tuple[int, ...]]]:
    """A scheduler whose tree holds `cached_tokens`: prefixes with two continuations each."""
    own = case.num_running * (2048 if case.radix else 4096)
    room = case.cached_tokens + (case.num_running * 64 + PREFIX_LEN * 2 if case.phase == "evicting" else own)
    num_pages = max(room, own) // case.page_size
    cache: Cache = PrefixCache(num_pages, case.page_size) if case.radix else NoCache(num_pages, case.page_size)
    prefixes = fill(cache, case.cached_tokens)
    options = ScheduleConfig(chunked_prefill_size=8192)
    return Scheduler(Capacity(num_pages, case.page_size, case.num_running), 1 << 20, VOCAB_SIZE, options, cache), prefixes


def fill(cache: Cache, num_tokens: int) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    prefixes: list[tuple[int, ...]] = []
    while cache.tree.num_tokens < num_tokens or len(prefixes) < 64:
        prefix = tuple(rng.randrange(VOCAB_SIZE) for _ in range(PREFIX_LEN))
        prefixes.append(prefix)
        for _ in range(2):
            if cache.tree.num_tokens < num_tokens:
                cache_sequence(cache, [*prefix, *(rng.randrange(VOCAB_SIZE) for _ in range(TAIL_LEN))])
    return prefixes


def cache_sequence(cache: Cache, ids: list[int]) -> None:
    tokens = np.array(ids, dtype=np.int32)
    lease = cache.acquire("", tokens)
    lease.pages.extend(cache.allocate(len(ids) // cache.page_size - len(lease.pages)) or ())
    cache.insert(lease, tokens)
    cache.release(lease)


class Stopwatch:
    """Adds up the seconds spent in some methods of one object."""

    def __init__(self, subject: object, *names: str) -> None:
        self.seconds = 0.0
        for name in names:
            setattr(subject, name, self._timed(getattr(subject, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def measure(case: Case, num_steps: int) -> tuple[list[float], list[float]]:
    """Seconds that each step took in the scheduler (plan, commit, and the requests that came and went), and of these in the cache."""
    scheduler, prefixes = build(case)
    watch = Stopwatch(scheduler.cache, "peek", "acquire", "allocate", "insert", "release")
    rng = random.Random(1)
    serial = 0

    def arrive() -> None:
        nonlocal serial
        tail = tuple(rng.randrange(VOCAB_SIZE) for _ in range(PROMPT_TAIL))
        # With arrivals, lengths are such that about one request ends per step.
        new = num_steps + 2 if case.phase == "decode" else case.num_running
        sampling = SamplingParams(max_new_tokens=new)
        scheduler.add(Request(request_id=str(serial), prompt_ids=rng.choice(prefixes) + tail, sampling=sampling, seed=0))
        serial += 1

    if case.phase == "decode":
        for _ in range(case.num_running):
            arrive()
        run_step(scheduler)
    seconds: list[float] = []
    in_cache: list[float] = []
    for _ in range(num_steps):
        watch.seconds, began = 0.0, time.perf_counter()
        if case.phase != "decode":
            arrive()
        spent = time.perf_counter() - began
        seconds.append(spent + run_step(scheduler))
        in_cache.append(watch.seconds)
    return seconds[num_steps // 10 :], in_cache[num_steps // 10 :]


def run_step(scheduler: Scheduler) -> float:
    began = time.perf_counter()
    plan = scheduler.plan()
    planned = time.perf_counter() - began
    if plan is None:
        return planned
    result = sampled(plan)
    began = time.perf_counter()
    scheduler.commit(plan, result)
    return planned + time.perf_counter() - began


def sampled(plan: BatchPlan) -> StepResult:
    return StepResult(tuple(RowResult((5,)) if row.samples else RowResult() for row in plan.rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cached-tokens", type=int, default=100_000)
    parser.add_argument("--running", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--step-ms", type=float, default=5.5, help="a model step to compare with")
    args = parser.parse_args()
    print("phase     page  cache cached tokens   step µs  p99 µs  in cache µs  cache share of a step")
    for phase in ("decode", "arrivals", "evicting"):
        for page_size in (1, 16):
            for radix, cached in ((True, args.cached_tokens), (True, 0), (False, 0)):
                if phase == "evicting" and not cached:
                    continue  # nothing to evict
                seconds, in_cache = measure(Case(page_size, cached, radix, phase, args.running), args.steps)
                p99 = sorted(seconds)[int(len(seconds) * 0.99)] * 1e6
                median, inside = statistics.median(seconds) * 1e6, statistics.median(in_cache) * 1e6
                kind, share = "radix" if radix else "none", inside / (args.step_ms * 1e3)
                print(f"{phase:9} {page_size:4} {kind:>6} {cached:13,} {median:9.0f} {p99:7.0f} {inside:12.1f} {share:21.2%}")


if __name__ == "__main__":
    main()
