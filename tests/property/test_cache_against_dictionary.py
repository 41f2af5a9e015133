"""The cache against a dictionary: random requests, partial progress, evictions, in any order."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ramet.runtime.cache.lease import Lease
from ramet.runtime.cache.page_audit import audit, balanced
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.cache.radix_tree import Pin

OWNERS = st.sampled_from(["a", "b"])
SEQUENCES = st.lists(st.integers(0, 2), min_size=1, max_size=24).map(tuple)
Sequence = tuple[int, ...]


class CacheMachine(RuleBasedStateMachine):
    """`content[page]`: the whole prefix that the page's KV stands for, written when a request computes it. A match must return pages
    whose content is the prefix asked for."""

    @initialize(
        page_size=st.sampled_from([1, 2, 4]), num_pages=st.integers(8, 40), eviction=st.sampled_from(["next-use", "lru", "lfu", "fifo"])
    )
    def start(self, page_size: int, num_pages: int, eviction: str) -> None:
        self.size = page_size
        self.cache = PrefixCache(num_pages, page_size, eviction)
        self.content: dict[int, tuple[str, Sequence]] = {}
        self.open: list[tuple[Lease, str, Sequence]] = []
        self.pins: list[Pin] = []

    @rule(ids=SEQUENCES, namespace=st.sampled_from(["", "x"]), owner=st.sampled_from(["", "a", "b"]))
    def acquire(self, ids: Sequence, namespace: str, owner: str) -> None:
        tokens = np.array(ids, dtype=np.int32)
        peeked = self.cache.peek(namespace, tokens)
        lease = self.cache.acquire(namespace, tokens, owner)
        assert lease.num_shared == peeked and peeked % self.size == 0
        assert self._longest_cached(namespace, ids) == peeked
        self._assert_content(lease, namespace, ids)
        missing = -(-len(ids) // self.size) - len(lease.pages)
        pages = self.cache.allocate(missing)
        if pages is None:
            assert missing > self.cache.available_pages
            self.cache.release(lease)
            return
        for page in pages:
            self.content[page] = (namespace, ids[: (len(lease.pages) + 1) * self.size])
            lease.pages.append(page)
        self.open.append((lease, namespace, ids))

    @rule(pick=st.integers(0, 99), part=st.floats(0, 1))
    def progress(self, pick: int, part: float) -> None:
        if self.open:
            lease, namespace, ids = self.open[pick % len(self.open)]
            done = ids[: int(len(ids) * part)]
            before = list(lease.pages)
            replaced_from = self.cache.insert(lease, np.array(done, dtype=np.int32))
            assert (before == lease.pages) == (replaced_from is None)
            if replaced_from is not None:
                assert before[:replaced_from] == lease.pages[:replaced_from]
            self._assert_content(lease, namespace, ids)

    @rule(pick=st.integers(0, 99))
    def release(self, pick: int) -> None:
        if self.open:
            lease, _, _ = self.open.pop(pick % len(self.open))
            self.cache.release(lease)

    @rule(ids=SEQUENCES, owner=OWNERS, next_use=st.floats(0, 9))
    def pin(self, ids: Sequence, owner: str, next_use: float) -> None:
        tokens = np.array(ids, dtype=np.int32)
        if self.cache.peek("", tokens):
            node, _ = self.cache.tree.match("", tokens)
            pin = self.cache.pin(owner, node, next_use, 0.0, 1.0)
            if pin is not None:
                self.pins.append(pin)

    @rule(pick=st.integers(0, 99))
    def unpin(self, pick: int) -> None:
        if self.pins:
            pin = self.pins.pop(pick % len(self.pins))
            self.cache.unpin(pin)
            assert pin.node is None

    @rule(ids=SEQUENCES, owner=OWNERS)
    def bury(self, ids: Sequence, owner: str) -> None:
        self.cache.bury(owner, "", np.array(ids, dtype=np.int32))

    @rule(num_pages=st.integers(1, 12))
    def press(self, num_pages: int) -> None:
        """Somebody takes pages and gives them back: forces evictions."""
        could = num_pages <= self.cache.available_pages
        pages = self.cache.allocate(num_pages)
        assert (pages is not None) == could
        for page in pages or ():
            self.content.pop(page, None)
        self.cache.allocator.free(pages or ())

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        assert self.cache.evictable_tokens == 0

    @invariant()
    def all_pages_are_accounted_for(self) -> None:
        if hasattr(self, "cache"):
            assert balanced(self.cache) and audit(self.cache) == []
            cache = self.cache
            assert cache.used_tokens + cache.evictable_tokens + cache.available_tokens == cache.allocator.num_pages * self.size

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            for lease, _, _ in self.open:
                self.cache.release(lease)
            self.cache.flush()
            assert self.cache.allocator.num_free == self.cache.allocator.num_pages and self.cache.tree.num_namespaces == 0

    def _assert_content(self, lease: Lease, namespace: str, ids: Sequence) -> None:
        for index, page in enumerate(lease.pages):
            assert self.content[page] == (namespace, ids[: (index + 1) * self.size])

    def _longest_cached(self, namespace: str, ids: Sequence) -> int:
        """By a walk over all that the tree holds: prefixes as dictionary keys."""
        cached = set()
        for node in self.cache.tree.nodes():
            for page in node.pages.tolist():
                cached.add(self.content[page])
        length = 0
        while length + self.size <= len(ids) and (namespace, ids[: length + self.size]) in cached:
            length += self.size
        return length


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
