"""RadixAttention's cache: a radix tree over the pages of one allocator."""

from __future__ import annotations

from collections.abc import Collection

from ramet.errors import InternalError
from ramet.runtime.cache.eviction import EVICTION_POLICIES, EvictionQueue
from ramet.runtime.cache.lease import CacheCounters, Lease
from ramet.runtime.cache.page_allocator import PageAllocator
from ramet.runtime.cache.radix_tree import Node, Pin, RadixTree, TokenArray
from ramet.runtime.cache.second_tier import SecondTier


class PrefixCache:
    """`Cache` with reuse. Costs of one call: O(new tokens + depth of the tree); a decode step that needs pages: O(log leaves)."""

    reuses = True

    def __init__(self, num_pages: int, page_size: int, eviction: str = "next-use", tier: SecondTier | None = None) -> None:
        self.page_size = page_size
        self.allocator = PageAllocator(num_pages)
        self._obeys_pins = eviction == "next-use"
        self._idle_leaves = EvictionQueue(EVICTION_POLICIES[eviction])
        self.tree = RadixTree(page_size, self._idle_leaves.push)
        self.counters = CacheCounters()
        self.tier = tier
        self._leases: dict[int, Lease] = {}

    @property
    def leases(self) -> Collection[Lease]:
        return self._leases.values()

    @property
    def available_pages(self) -> int:
        return self.allocator.num_free + self.tree.num_evictable // self.page_size

    @property
    def available_tokens(self) -> int:
        return self.allocator.num_free * self.page_size

    @property
    def evictable_tokens(self) -> int:
        return self.tree.num_evictable

    @property
    def pinned_tokens(self) -> int:
        return self.tree.num_pinned

    @property
    def used_tokens(self) -> int:
        return (self.allocator.num_pages - self.available_pages) * self.page_size

    def peek(self, namespace: str, tokens: TokenArray) -> int:
        return self.tree.peek(namespace, tokens)[1]

    def peek_node(self, namespace: str, tokens: TokenArray) -> Node | None:
        return self.tree.peek(namespace, tokens)[0]

    def acquire(self, namespace: str, tokens: TokenArray, owner: str = "") -> Lease:
        node, length = self.tree.match(namespace, tokens)
        self.tree.lock(node, owner=owner)
        self.counters.hit += length
        lease = Lease(node, length, self.tree.pages_to(node), owner)
        self._leases[id(lease)] = lease
        return lease

    def allocate(self, num_pages: int) -> list[int] | None:
        missing = num_pages - self.allocator.num_free
        if missing > 0:
            if num_pages > self.available_pages:
                return None
            self._evict(missing)
        return self.allocator.allocate(num_pages)

    def insert(self, lease: Lease, tokens: TokenArray) -> int | None:
        end = len(tokens) - len(tokens) % self.page_size
        if end <= lease.num_shared:
            return None
        first, last = lease.num_shared // self.page_size, end // self.page_size
        own = lease.pages[first:last]
        above = lease.node
        assert above is not None, "a released lease cannot insert"
        found = self.tree.insert(above, tokens[lease.num_shared : end], own, lease.owner)
        self.tree.lock(found.node, above=above, owner=lease.owner)
        lease.node, lease.num_shared = found.node, end
        return self._replace_duplicates(lease, first, own, found.shared_pages)

    def release(self, lease: Lease) -> None:
        if self._leases.pop(id(lease), None) is None or lease.node is None:
            raise InternalError("a KV lease was released twice")
        self.allocator.free(lease.pages[lease.num_shared // self.page_size :])
        self.tree.unlock(lease.node)
        lease.node, lease.num_shared, lease.pages = None, 0, []

    def pin(self, owner: str, node: Node, next_use: float, since: float, expires: float) -> Pin | None:
        if not self._obeys_pins or node.parent is None:
            return None
        pin = Pin(owner, node, next_use, since, expires)
        self.tree.pin(pin)
        return pin

    def unpin(self, pin: Pin) -> None:
        self.tree.unpin(pin)

    def bury(self, owner: str, namespace: str, tokens: TokenArray) -> None:
        node, _ = self.tree.peek(namespace, tokens)
        if self._obeys_pins and node is not None:
            self.tree.bury(node, owner)

    def flush(self) -> None:
        tier, self.tier = self.tier, None  # what is dropped on purpose is not kept elsewhere
        self._evict(self.tree.num_evictable // self.page_size)
        self.tier = tier
        if tier is not None:
            tier.flush()

    def _replace_duplicates(self, lease: Lease, first: int, own: list[int], shared: list[int]) -> int | None:
        duplicates = len(shared)
        self.counters.inserted += (len(own) - duplicates) * self.page_size
        if not duplicates:
            return None
        self.counters.duplicate += duplicates * self.page_size
        lease.pages[first : first + duplicates] = shared
        self.allocator.free(own[:duplicates])
        return first

    def _evict(self, num_pages: int) -> None:
        while num_pages > 0:
            leaf = self._idle_leaves.pop()
            if leaf is None:
                raise InternalError(f"{num_pages} KV pages are counted as evictable but no leaf of the tree is idle")
            is_pinned = leaf.num_pins > 0
            count = num_pages if self.tier is None else self._save_end(leaf, num_pages, self.tier)
            freed = self.tree.trim(leaf, count)
            self.allocator.free(freed)
            self.counters.evicted += len(freed) * self.page_size
            self.counters.evicted_pinned += len(freed) * self.page_size * is_pinned
            num_pages -= len(freed)

    def _save_end(self, leaf: Node, num_pages: int, tier: SecondTier) -> int:
        """Save what is about to be cut off the end of `leaf`, unless nobody will ask for it again. Returns how many pages to cut: down to
        the border of a block, so that each is saved and lost once."""
        tokens, pages = self.tree.sequence_to(leaf)
        begin = len(pages) - len(leaf.pages)
        keep = max(begin, (len(pages) - num_pages) // tier.block_pages * tier.block_pages)
        if not leaf.is_dead:
            tier.save(leaf.namespace, tokens, pages, keep * self.page_size)
        return len(pages) - keep
