"""Tree and allocator together: leases, duplicates, eviction orders, audits and healing."""

from __future__ import annotations

import numpy as np
import pytest

from ramet.errors import InternalError
from ramet.runtime.cache.lease import Lease
from ramet.runtime.cache.no_cache import NoCache
from ramet.runtime.cache.page_allocator import PageAllocator
from ramet.runtime.cache.page_audit import audit, balanced, check_idle
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.cache.radix_tree import TokenArray


def tokens(*ids: int) -> TokenArray:
    return np.array(ids, dtype=np.int32)


def lease_for(cache: PrefixCache, ids: TokenArray) -> Lease:
    """A request that has computed all of `ids`, not yet cached."""
    lease = cache.acquire("", ids)
    pages = cache.allocate(-(-len(ids) // cache.page_size) - len(lease.pages))
    assert pages is not None
    lease.pages.extend(pages)
    return lease


def run(cache: PrefixCache, *ids: int) -> None:
    lease = lease_for(cache, tokens(*ids))
    cache.insert(lease, tokens(*ids))
    cache.release(lease)


def test_double_free_is_caught() -> None:
    allocator = PageAllocator(4)
    pages = allocator.allocate(2)
    allocator.free(pages)
    with pytest.raises(InternalError, match="freed twice"):
        allocator.free(pages[:1])
    with pytest.raises(InternalError, match="asked for 5"):
        allocator.allocate(5)


def test_release_keeps_what_was_cached_and_frees_the_rest() -> None:
    cache = PrefixCache(8, 2)
    lease = lease_for(cache, tokens(1, 2, 3, 4, 5))
    cache.insert(lease, tokens(1, 2, 3, 4, 5))
    assert (lease.num_shared, cache.used_tokens, cache.evictable_tokens) == (4, 6, 0)
    cache.release(lease)
    assert (cache.used_tokens, cache.evictable_tokens, cache.available_tokens) == (0, 4, 12)
    with pytest.raises(InternalError, match="released twice"):
        cache.release(lease)


def test_duplicate_pages_are_handed_back_and_replaced() -> None:
    cache = PrefixCache(16, 1)
    first, second = lease_for(cache, tokens(1, 2, 3)), lease_for(cache, tokens(1, 2, 3, 4))
    cache.insert(first, tokens(1, 2, 3))
    own = list(second.pages)
    assert cache.insert(second, tokens(1, 2, 3, 4)) == 0
    assert second.pages == [*first.pages, own[3]] and cache.counters.duplicate == 3
    assert set(own[:3]) <= set(cache.allocator.free_pages()) and audit(cache) == []


def test_progress_is_inserted_from_where_it_stood() -> None:
    cache = PrefixCache(16, 1)
    lease = lease_for(cache, tokens(*range(9)))
    for end in (3, 3, 6, 9):
        assert cache.insert(lease, tokens(*range(9))[:end]) is None
        assert cache.peek("", tokens(*range(9))) == end and audit(cache) == []
    cache.release(lease)
    assert cache.evictable_tokens == 9


@pytest.mark.parametrize(("policy", "survivors"), [("lru", {1, 3}), ("lfu", {1, 3}), ("fifo", {2, 3})])
def test_eviction_order(policy: str, survivors: set[int]) -> None:
    cache = PrefixCache(6, 1, policy)
    for first in (1, 2, 3):
        run(cache, first, 0)
    run(cache, 1, 0)
    assert cache.allocate(2) is not None
    assert {first for first in (1, 2, 3) if cache.peek("", tokens(first, 0))} == survivors
    assert cache.counters.evicted == 2


def test_lfu_keeps_the_often_used_and_lru_the_recent() -> None:
    kept = {}
    for policy in ("lru", "lfu"):
        cache = PrefixCache(4, 1, policy)
        for first in (1, 1, 1, 2):
            run(cache, first, 0)
        cache.allocate(2)
        kept[policy] = cache.peek("", tokens(1, 0))
    assert kept == {"lru": 0, "lfu": 2}


def test_what_a_lease_holds_is_never_evicted() -> None:
    cache = PrefixCache(6, 1)
    run(cache, 1, 2, 3)
    lease = cache.acquire("", tokens(1, 2))
    assert cache.available_pages == 4 and cache.allocate(5) is None
    assert cache.allocate(4) is not None and cache.peek("", tokens(1, 2, 3)) == 2
    cache.release(lease)


def test_eviction_takes_only_what_is_needed() -> None:
    cache = PrefixCache(8, 1)
    run(cache, *range(8))
    assert cache.allocate(3) is not None
    assert cache.peek("", tokens(*range(8))) == 5


def test_an_imbalance_is_explained_logged_and_healed(caplog: pytest.LogCaptureFixture) -> None:
    cache = PrefixCache(8, 1)
    run(cache, 1, 2, 3)
    cache.allocator.allocate(2)
    assert not balanced(cache) and any("belongs to nobody" in line for line in audit(cache))
    assert not check_idle(cache) and "belongs to nobody" in caplog.text
    assert audit(cache) == [] and cache.peek("", tokens(1, 2, 3)) == 3 and check_idle(cache)


def test_a_forgotten_lease_is_healed() -> None:
    cache = PrefixCache(8, 2)
    lease_for(cache, tokens(1, 2, 3))
    assert not check_idle(cache)
    assert audit(cache) == [] and cache.available_tokens == 16


def test_an_audit_sees_a_page_with_two_owners() -> None:
    cache = PrefixCache(8, 1)
    first, second = lease_for(cache, tokens(1)), lease_for(cache, tokens(2))
    second.pages = list(first.pages)
    assert any("2 owners" in line for line in audit(cache))


def test_no_cache_finds_nothing_and_frees_everything() -> None:
    cache = NoCache(4, 2)
    lease = cache.acquire("", tokens(1, 2))
    lease.pages.extend(cache.allocate(3) or [])
    assert cache.insert(lease, tokens(1, 2, 3, 4)) is None and cache.allocate(2) is None
    cache.release(lease)
    assert cache.available_tokens == 8 and cache.peek("", tokens(1, 2)) == 0 and audit(cache) == []
