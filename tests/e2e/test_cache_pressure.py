"""The sweep of benchmarks/cache_pressure, small: virtual time gives the same figures twice, and lifetimes save what LRU computes again."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cache_pressure.__main__ import ROOMY, VARIANTS, Outcome, measure
from benchmarks.cache_pressure.workloads import WORKLOADS

PROGRAMS = 16
REACT = replace(WORKLOADS[0], live=12)


def run(name: str, num_pages: int, reference: Outcome | None = None) -> Outcome:
    variant = next(each for each in VARIANTS if each.name == name)
    return measure(REACT, variant, num_pages, PROGRAMS, reference.prompts if reference is not None else [])


def test_lifetimes_save_prefill_where_kv_is_scarce() -> None:
    roomy = run("kv_liveness", ROOMY)
    pool = int(0.3 * roomy.peak_needed)
    lru, kept, oracle = (run(name, pool, roomy) for name in ("lru", "kv_liveness", "oracle"))
    assert run("lru", pool).seconds == lru.seconds
    assert sorted(prompt for _, prompt in lru.prompts) == sorted(prompt for _, prompt in roomy.prompts)  # eviction changes no output
    assert kept.prefill_tokens < 0.8 * lru.prefill_tokens and kept.hit_rate > lru.hit_rate
    assert roomy.hit_rate > kept.hit_rate and roomy.prefill_tokens < oracle.prefill_tokens
