"""Which numbers of rows get CUDA graphs of decode steps: those that the model's products like.

A step is padded to the next size that has a recording. The time of a product does not grow evenly with its tokens: the last tile is padded,
and cuBLAS may choose badly. On an H200 the four products of an 8B layer take 410 µs for 448 tokens, and 289 for 456. So they are timed
once, in a fraction of a second, and a size that is not faster than a larger one is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from ramet.log import get_logger
from ramet.runtime.layers.rank_group import RankGroup

_LOG = get_logger(__name__)

FEW = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Here weights are read at the memory's speed, and attention decides."""
MOST_ROWS = 512
_STRIDE = 8
_GAIN = 0.03
_ROUNDS = 3
_AHEAD = 128
"""Queued before the first that is timed, so that the device has work while Python launches more."""


class Products(Protocol):
    """A model's step, as far as it is measured."""

    def noise(self, num_tokens: int) -> torch.Tensor:
        """Inputs for `multiply`, one line per token."""

    def multiply(self, noise: torch.Tensor) -> None:
        """Queue the matrix products of one layer for so many tokens."""


def choose_sizes(step: Products, most: int, ranks: RankGroup | None) -> tuple[int, ...]:
    """Ascending, up to `most`; the same on every rank."""
    small = tuple(size for size in FEW if size < most)
    candidates = tuple(range(FEW[-1] + _STRIDE, most, _STRIDE))
    if not candidates:
        return (*small, most)
    seconds = measure(step, (*candidates, most), ranks)
    chosen = (*small, *useful_sizes(seconds))
    _LOG.info("CUDA graphs for decode steps of up to %s rows", ", ".join(map(str, chosen)))
    return chosen


def useful_sizes(seconds: Mapping[int, float]) -> tuple[int, ...]:
    """The largest, and every one that saves 3 % against the next larger one kept."""
    kept: list[int] = []
    for size in sorted(seconds, reverse=True):
        if not kept or seconds[size] <= (1 - _GAIN) * seconds[kept[-1]]:
            kept.append(size)
    return tuple(reversed(kept))


@torch.inference_mode()
def measure(step: Products, sizes: Sequence[int], ranks: RankGroup | None) -> dict[int, float]:
    """Seconds of one layer's products for each size, the best of a few; over ranks the sum."""
    noise = step.noise(max(sizes))
    for _ in range(_AHEAD):
        step.multiply(noise)
    runs = []
    for size in sizes:
        step.multiply(noise[:size])
        events = [torch.cuda.Event(enable_timing=True) for _ in range(_ROUNDS + 1)]  # type: ignore[no-untyped-call]
        events[0].record()
        for event in events[1:]:
            step.multiply(noise[:size])
            event.record()
        runs.append(events)
    torch.cuda.synchronize(noise.device)
    best = [min(a.elapsed_time(b) for a, b in itertools.pairwise(events)) / 1e3 for events in runs]
    if ranks is not None:
        best = ranks.all_reduce(torch.tensor(best, device=noise.device)).tolist()
    return dict(zip(sizes, best, strict=True))
