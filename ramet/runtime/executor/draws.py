"""What decides a draw besides the logits: the parameters, and a uniform number that seed and position say. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ramet.runtime.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Draw:
    """What a row needs to draw its token: parameters and a uniform number in [0, 1)."""

    params: SamplingParams
    uniform: float


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """52-bit uniform numbers in [0, 1), one per (seed, position): two rounds of the finaliser of SplitMix64 (Steele, Lea and
    Flood, OOPSLA 2014)."""
    seed = np.array([value & (2**64 - 1) for value in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    bits = _mix(_mix(seed + _GOLDEN) ^ (position * _GOLDEN + np.uint64(1)))
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52


def is_filtered(params: SamplingParams, vocab: int) -> bool:
    """Whether top_k, top_p or min_p can leave a token out."""
    return 0 < params.top_k < vocab or params.top_p < 1.0 or params.min_p > 0.0


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
