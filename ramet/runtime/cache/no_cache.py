"""The slow twin of `PrefixCache`: pages are leased and freed, nothing is ever reused (`--disable-radix-cache`)."""

from __future__ import annotations

from collections.abc import Collection

from ramet.errors import InternalError
from ramet.runtime.cache.lease import CacheCounters, Lease
from ramet.runtime.cache.page_allocator import PageAllocator
from ramet.runtime.cache.radix_tree import Node, Pin, RadixTree, TokenArray
from ramet.runtime.cache.second_tier import SecondTier


class NoCache:
    """`Cache` whose tree stays empty."""

    reuses = False
    tier: SecondTier | None = None

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.allocator = PageAllocator(num_pages)
        self.tree = RadixTree(page_size)
        self.counters = CacheCounters()
        self._leases: dict[int, Lease] = {}

    @property
    def leases(self) -> Collection[Lease]:
        return self._leases.values()

    @property
    def available_pages(self) -> int:
        return self.allocator.num_free

    @property
    def available_tokens(self) -> int:
        return self.allocator.num_free * self.page_size

    @property
    def evictable_tokens(self) -> int:
        return 0

    @property
    def pinned_tokens(self) -> int:
        return 0

    @property
    def used_tokens(self) -> int:
        return (self.allocator.num_pages - self.allocator.num_free) * self.page_size

    def peek(self, namespace: str, tokens: TokenArray) -> int:
        return 0

    def peek_node(self, namespace: str, tokens: TokenArray) -> Node | None:
        return None

    def acquire(self, namespace: str, tokens: TokenArray, owner: str = "") -> Lease:
        lease = Lease(owner=owner)
        self._leases[id(lease)] = lease
        return lease

    def allocate(self, num_pages: int) -> list[int] | None:
        return self.allocator.allocate(num_pages) if num_pages <= self.allocator.num_free else None

    def insert(self, lease: Lease, tokens: TokenArray) -> int | None:
        return None

    def release(self, lease: Lease) -> None:
        if self._leases.pop(id(lease), None) is None:
            raise InternalError("a KV lease was released twice")
        self.allocator.free(lease.pages)
        lease.pages = []

    def pin(self, owner: str, node: Node, next_use: float, since: float, expires: float) -> Pin | None:
        return None

    def unpin(self, pin: Pin) -> None:
        """There are no pins."""

    def bury(self, owner: str, namespace: str, tokens: TokenArray) -> None:
        """Nothing outlives its lease."""

    def flush(self) -> None:
        """There is never anything to drop."""
