"""The second tier's memory as scheduler and cache see it: blocks of KV beside the pool, copied by what plans say (`PageMove`). No torch."""

from __future__ import annotations

from typing import Protocol

BLOCK_TOKENS = 64
"""Tokens of a block, or one page where that is more: long enough for a file, short enough that little of a prefix is lost at its end."""


class HostMemory(Protocol):
    """Made by the executor. Steps alone copy between a block and the pool; files are read into blocks and written from them by whoever
    knows that no step does so at the time."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_pages(self) -> int: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def is_beside_pool(self) -> bool:
        """The pool itself lies in this memory (a CPU): blocks are then only a place where files come and go."""

    @property
    def bytes_per_second(self) -> float:
        """From a block to the pool, as measured when the memory was made."""

    @property
    def fingerprint(self) -> str:
        """Two servers whose KV is interchangeable bit by bit have the same one: weights, computation, type, layout."""

    def view(self, block: int) -> memoryview:
        """Its bytes, writable, in one piece."""


def block_pages(page_size: int) -> int:
    return max(1, BLOCK_TOKENS // page_size)
