"""Who owns a page, at its simplest: a stack of free page ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ramet.errors import InternalError


class PageAllocator:
    """Hands out page ids 0 … num_pages-1. Knows nothing of trees or requests; freeing a free page raises."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free: list[int] = []
        self._is_free = bytearray(num_pages)
        self.free(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, num_pages: int) -> list[int]:
        """Take `num_pages` free pages; the caller has made sure that there are as many."""
        if num_pages > len(self._free):
            raise InternalError(f"asked for {num_pages} KV pages while {len(self._free)} of {self.num_pages} are free")
        taken = self._free[len(self._free) - num_pages :]
        del self._free[len(self._free) - num_pages :]
        for page in taken:
            self._is_free[page] = 0
        return taken

    def free(self, pages: Iterable[int]) -> None:
        for page in pages:
            if self._is_free[page]:
                raise InternalError(f"KV page {page} was freed twice")
            self._is_free[page] = 1
            self._free.append(page)

    def free_pages(self) -> Sequence[int]:
        """For audits."""
        return tuple(self._free)

    def reset(self, pages_in_use: Iterable[int]) -> None:
        """Forget everything and start again with only these pages in use (healing)."""
        used = set(pages_in_use)
        self._free = [page for page in range(self.num_pages - 1, -1, -1) if page not in used]
        self._is_free = bytearray(0 if page in used else 1 for page in range(self.num_pages))
