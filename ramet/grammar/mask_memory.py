"""Masks, and forced tokens, of places in a grammar where some request has already been.

Requests under one grammar, and one request in a loop of it, come to the same places over and over: the tenth character of a name is the
same place whatever the nine before it were. What may follow depends on nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np
import numpy.typing as npt

MAX_BYTES = 32 << 20
MAX_FORCED = 50_000

Row = npt.NDArray[np.uint32]


class MaskMemory:
    """Belongs to a compiled grammar; places are states of its automaton. Safe to share between threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[int, Row] = OrderedDict()
        self._forced: dict[int, list[int]] = {}
        self._lock = Lock()

    def copy(self, place: int, row: Row) -> bool:
        """Write the mask of `place` into `row`; False, and nothing written, where it is not known."""
        with self._lock:
            known = self._rows.get(place)
            if known is None:
                return False
            self._rows.move_to_end(place)
        row[:] = known
        return True

    def keep(self, place: int, row: Row) -> None:
        """Remember a copy of `row`; the masks not used for longest make room."""
        with self._lock:
            self._rows[place] = row.copy()
            while len(self._rows) > 1 and len(self._rows) * row.nbytes > self._max_bytes:
                self._rows.popitem(last=False)

    def forced(self, place: int) -> list[int] | None:
        """What `keep_forced` was told; None where nothing was."""
        return self._forced.get(place)

    def keep_forced(self, place: int, tokens: list[int]) -> None:
        with self._lock:
            if len(self._forced) >= MAX_FORCED:
                self._forced.clear()
            self._forced[place] = tokens
