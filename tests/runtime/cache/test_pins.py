"""What is evicted first when programs say what they still need."""

from __future__ import annotations

import numpy as np
import pytest

from ramet.runtime.cache.page_audit import audit
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.cache.radix_tree import Pin


def cache_of(*sequences: tuple[str, list[int]], num_pages: int = 64, eviction: str = "next-use") -> PrefixCache:
    """(owner, tokens) each, computed in order and left."""
    cache = PrefixCache(num_pages, 1, eviction)
    for owner, ids in sequences:
        compute(cache, owner, ids)
    return cache


def compute(cache: PrefixCache, owner: str, ids: list[int]) -> None:
    tokens = np.array(ids, dtype=np.int32)
    lease = cache.acquire("", tokens, owner)
    pages = cache.allocate(len(ids) - len(lease.pages))
    assert pages is not None
    lease.pages.extend(pages)
    cache.insert(lease, tokens)
    cache.release(lease)
    assert audit(cache) == []


def pin(cache: PrefixCache, owner: str, ids: list[int], next_use: float) -> Pin:
    node, _ = cache.tree.match("", np.array(ids, dtype=np.int32))
    found = cache.pin(owner, node, next_use, 0.0, 100.0)
    assert found is not None and audit(cache) == []
    return found


def press(cache: PrefixCache, num_pages: int) -> None:
    """Evict as much as `num_pages` take."""
    pages = cache.allocate(cache.available_tokens + num_pages)
    assert pages is not None
    cache.allocator.free(pages)
    assert audit(cache) == []


def cached(cache: PrefixCache, ids: list[int]) -> int:
    return cache.peek("", np.array(ids, dtype=np.int32))


def test_the_dead_go_first_then_the_unknown_then_the_farthest_next_use() -> None:
    a, b, c, d = [1] * 8, [2] * 8, [3] * 8, [4] * 8
    cache = cache_of(("soon", a), ("later", b), ("", c), ("done", d))
    pin(cache, "soon", a, 1.0)
    pin(cache, "later", b, 9.0)
    cache.bury("done", "", np.array(d, dtype=np.int32))
    order = []
    for _ in range(4):
        press(cache, 8)
        order.append([cached(cache, ids) for ids in (a, b, c, d)].count(8))
        order.append(next(name for name, ids in zip("dcba", (d, c, b, a), strict=True) if cached(cache, ids) == 8) if order[-1] else "")
    assert order == [3, "c", 2, "b", 1, "a", 0, ""]


@pytest.mark.parametrize("eviction", ["lru", "lfu", "fifo"])
def test_the_twins_know_no_pins(eviction: str) -> None:
    cache = cache_of(("a", [1] * 8), ("b", [2] * 8), eviction=eviction)
    node, _ = cache.tree.match("", np.array([1] * 8, dtype=np.int32))
    assert cache.pin("a", node, 0.0, 0.0, 1.0) is None
    press(cache, 8)
    assert (cached(cache, [1] * 8), cached(cache, [2] * 8)) == (0, 8)


def test_a_pin_is_no_lock_and_ends_when_a_part_of_it_is_cut_away() -> None:
    cache = cache_of(("a", [1, 2, 3, 4, 5, 6]), ("a", [1, 2, 9]), ("b", [7] * 6))
    inner, outer = pin(cache, "a", [1, 2, 3, 4, 5, 6], 9.0), pin(cache, "a", [1, 2], 2.0)
    other = pin(cache, "b", [7] * 6, 1.0)
    assert cache.pinned_tokens == 12
    press(cache, 1)  # [9], which no pin holds
    press(cache, 2)
    assert cached(cache, [1, 2, 3, 4, 5, 6]) == 4 and inner.node is None and cache.counters.evicted_pinned == 2
    assert cache.pinned_tokens == 8  # [1, 2] and b's
    press(cache, 2)  # the rest of what was cut, not b's
    assert outer.node is not None and other.node is not None and cache.pinned_tokens == 8
    press(cache, 1)
    assert outer.node is None and cache.pinned_tokens == 6
    cache.unpin(inner)
    cache.unpin(outer)


def test_unpinned_prefixes_go_in_their_turn() -> None:
    cache = cache_of(("a", [1] * 8), ("b", [2] * 8))
    held = pin(cache, "a", [1] * 8, 0.0)
    cache.unpin(held)
    assert cache.pinned_tokens == 0
    press(cache, 8)
    assert cached(cache, [2] * 8) == 8


def test_only_what_nobody_else_used_is_dead() -> None:
    shared, tail = [7] * 8, [7] * 8 + [1] * 4
    cache = cache_of(("", [7] * 8), ("run", tail), ("", [5] * 4))
    cache.bury("run", "", np.array(tail, dtype=np.int32))
    press(cache, 4)
    assert (cached(cache, tail), cached(cache, [5] * 4)) == (8, 4)  # the run's own tail went first
    press(cache, 4)
    assert (cached(cache, shared), cached(cache, [5] * 4)) == (4, 4)  # then the oldest, end first


def test_a_branch_that_lives_keeps_its_stem() -> None:
    stem, left, right = [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5]
    cache = cache_of(("r", left), ("r", right))
    cache.bury("r", "", np.array(left, dtype=np.int32))
    dead = {tuple(node.key.tolist()) for node in cache.tree.nodes() if node.is_dead}
    assert dead == {(4,)}
    cache.bury("r", "", np.array(right, dtype=np.int32))
    assert all(node.is_dead for node in cache.tree.nodes())
    compute(cache, "other", stem)
    assert {tuple(node.key.tolist()) for node in cache.tree.nodes() if node.is_dead} == {(4,), (5,)}


def test_many_changes_of_mind_do_not_grow_the_queue() -> None:
    cache = cache_of(("a", [1] * 8), ("b", [2] * 8))
    for _ in range(500):
        cache.unpin(pin(cache, "a", [1] * 8, 1.0))
    assert len(cache._idle_leaves._heap) < 50
    press(cache, 16)
    assert cache.tree.num_tokens == 0
