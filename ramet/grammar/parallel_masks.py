"""Masks of many rows at once, on threads of the constraint engine that need no interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ramet.grammar.matcher import MaskTask, Matcher

if TYPE_CHECKING:
    from llguidance import LLExecutor

CORES_PER_THREAD = 4
LEAST_THREADS, MOST_THREADS = 4, 8
"""Per row the engine's threads take about twice what a call takes: with fewer than four there is nothing to gain."""
LEAST_TASKS = 8
"""Waking the threads costs about as much as computing three masks."""


def default_threads() -> int:
    """A quarter of the cores; 1 where that is too few to gain by."""
    threads = min((os.cpu_count() or 1) // CORES_PER_THREAD, MOST_THREADS)
    return threads if threads >= LEAST_THREADS else 1


class ParallelMasks:
    """Implements `MaskFiller` for matchers of llguidance. What is remembered, forced, or has a twin in the same place of the same grammar
    is not computed at all."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads

    def fill(self, matchers: Sequence[Matcher | None], bits: npt.NDArray[np.uint32]) -> None:
        tasks: list[tuple[MaskTask, int]] = []
        twins: list[int] = []
        places: set[Hashable] = set()
        for index, matcher in enumerate(matchers):
            task = None if matcher is None else matcher.start_mask(bits[index])
            if task is None:
                continue
            if task.place is not None and task.place in places:
                twins.append(index)
                continue
            places.add(task.place)
            tasks.append((task, index))
        self._compute(tasks, bits)
        for index in twins:
            matcher = matchers[index]
            assert matcher is not None
            matcher.fill_mask(bits[index])

    def _compute(self, tasks: list[tuple[MaskTask, int]], bits: npt.NDArray[np.uint32]) -> None:
        if len(tasks) < LEAST_TASKS:
            for task, _ in tasks:
                task.run()
            return
        rows = [(task.engine, index) for task, index in tasks]
        self._executor.unsafe_compute_mask_ptr(rows, bits.ctypes.data, bits.strides[0], len(bits))
        for task, _ in tasks:
            task.finish()

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(self._num_threads)
