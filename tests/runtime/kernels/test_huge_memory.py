"""Pieces of memory that lie behind each other in private mappings, the only ones that most systems back with huge pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ramet.runtime.kernels.huge_memory import ALIGNMENT, CHUNK, HUGE_PAGE, HugeMemory


def test_pieces_are_aligned_and_apart() -> None:
    memory = HugeMemory()
    pieces = [memory.empty(size) for size in (1, 63, 64, 65, 5000, CHUNK - 100, 7, 2 * CHUNK, 3)]
    for i, piece in enumerate(pieces):
        piece[:] = i
    assert [(int(piece.min()), int(piece.max())) for piece in pieces] == [(i, i) for i in range(len(pieces))]
    assert all(piece.ctypes.data % ALIGNMENT == 0 for piece in pieces)
    assert pieces[0].ctypes.data % HUGE_PAGE == 0


def test_the_mapping_is_private_and_asks_for_huge_pages() -> None:
    piece = HugeMemory().empty(4 * HUGE_PAGE)
    piece[:] = 1
    if not Path("/proc/self/smaps").exists():
        pytest.skip("the system does not tell")
    head, flags = mapping_of(piece)
    assert head.split()[1] == "rw-p"
    assert "hg" in flags.split() or not Path("/sys/kernel/mm/transparent_hugepage").exists()


def mapping_of(piece: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[str, str]:
    """The lines of /proc/self/smaps that say where the memory of `piece` is from and what was advised for it."""
    head = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(bound, 16) for bound in first.split("-"))
            head = line if low <= piece.ctypes.data < high else ""
        elif head and first == "VmFlags:":
            return head, line
    raise AssertionError("no mapping holds the piece")
