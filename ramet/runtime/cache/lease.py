"""What the scheduler may expect of a KV cache, with or without reuse."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from ramet.runtime.cache.page_allocator import PageAllocator
from ramet.runtime.cache.radix_tree import Node, Pin, RadixTree, TokenArray
from ramet.runtime.cache.second_tier import SecondTier


@dataclass(slots=True, eq=False)
class Lease:
    """One running request's hold on the pool. Page i holds tokens i*page_size … of the sequence.

    The first `num_shared` tokens (whole pages) live in the tree, locked through `node`; the pages after them are the request's own.
    Whoever allocates appends to `pages`; everything else is changed by the cache alone. `owner` is the program run, if any.
    """

    node: Node | None = None
    num_shared: int = 0
    pages: list[int] = field(default_factory=list)
    owner: str = ""


@dataclass(slots=True)
class CacheCounters:
    """Cumulative, in tokens."""

    hit: int = 0
    inserted: int = 0
    duplicate: int = 0  # computed twice: handed back because the tree had them already
    evicted: int = 0
    evicted_pinned: int = 0  # of these, while somebody still counted on them


class Cache(Protocol):
    """Owns every page of the pool: free, cached in the tree, or leased to a request. Not thread-safe.

    Lengths are in tokens and `tokens` is always the whole sequence from its first token, int32.
    """

    reuses: bool  # whether what is inserted can be found again
    page_size: int
    allocator: PageAllocator
    tree: RadixTree
    counters: CacheCounters
    tier: SecondTier | None  # where evicted KV goes

    @property
    def leases(self) -> Collection[Lease]: ...

    @property
    def available_pages(self) -> int:
        """Free now or after eviction."""
        ...

    @property
    def available_tokens(self) -> int:
        """Free now."""
        ...

    @property
    def evictable_tokens(self) -> int: ...

    @property
    def pinned_tokens(self) -> int:
        """Of the evictable ones, those that a pin protects: they go last."""
        ...

    @property
    def used_tokens(self) -> int:
        """Held by leases, shared prefixes counted once."""
        ...

    def peek(self, namespace: str, tokens: TokenArray) -> int:
        """How long a prefix `acquire` would find. Leaves no trace."""
        ...

    def peek_node(self, namespace: str, tokens: TokenArray) -> Node | None:
        """The deepest tree node that the prefix touches, for orders that follow the tree."""
        ...

    def acquire(self, namespace: str, tokens: TokenArray, owner: str = "") -> Lease:
        """Match the longest cached prefix and lock it; `lease.pages` are its pages. Pass `tokens` cut to what may be reused.
        End with `release`."""
        ...

    def allocate(self, num_pages: int) -> list[int] | None:
        """Take pages, evicting as many cached ones as it takes; None, with nothing changed, when there are not that many."""
        ...

    def insert(self, lease: Lease, tokens: TokenArray) -> int | None:
        """Cache `tokens`, all of whose KV is computed and lies in the lease's pages, and lock them for the lease. Costs what is new since
        the last call. Pages that the tree has already are replaced in the lease by the tree's own, and freed: the index of the
        first replaced page is returned (None: none was), and the pages from there on must be sent to the executor again."""
        ...

    def release(self, lease: Lease) -> None:
        """End the lease: own pages are freed, cached ones stay and become evictable when nobody else holds them."""
        ...

    def pin(self, owner: str, node: Node, next_use: float, since: float, expires: float) -> Pin | None:
        """Protect the prefix that ends at `node`. None: there is nothing to protect, or this cache does not look at pins."""
        ...

    def unpin(self, pin: Pin) -> None:
        """Take `pin` back; one of which nothing is left is no error."""
        ...

    def bury(self, owner: str, namespace: str, tokens: TokenArray) -> None:
        """`owner` has used `tokens` for the last time. What nobody else has used is evicted first."""
        ...

    def flush(self) -> None:
        """Drop everything that nobody holds."""
        ...
