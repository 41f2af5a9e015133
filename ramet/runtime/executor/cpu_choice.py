"""Tokens from logits on the CPU: one pass over a row where torch needs five, and a sort of the few tokens that count.
No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ramet.runtime.executor.draws import Draw
from ramet.runtime.kernels.packed_weight import CpuContext

Array = npt.NDArray[Any]
_DRAW = np.dtype([("uniform", "f8"), ("top_p", "f8"), ("min_p", "f8"), ("inverse_temperature", "f4"), ("top_k", "i4")])
"""`DrawParams` of kernels/cpu/sampling.h."""


class CpuChoice:
    """Implements `TokenChoice` by the kernels of `kernels/cpu/sampling.h`; its twin is `TorchChoice`."""

    def __init__(self, context: CpuContext) -> None:
        self._context = context

    def forbid(self, logits: Array, rows: Sequence[int], masks: Sequence[int], bits: npt.NDArray[np.uint32]) -> None:
        which, lines, allowed = _index(rows), _index(masks), np.ascontiguousarray(bits)
        self._context.library.ramet_forbid(
            self._context.handle,
            logits.ctypes.data,
            which.ctypes.data,
            lines.ctypes.data,
            len(which),
            logits.shape[1],
            allowed.ctypes.data,
            allowed.shape[1],
        )

    def likeliest(self, logits: Array, rows: Sequence[int]) -> Array:
        which, tokens = _index(rows), np.empty(len(rows), dtype=np.int64)
        self._context.library.ramet_likeliest(
            self._context.handle, logits.ctypes.data, which.ctypes.data, len(which), logits.shape[1], tokens.ctypes.data
        )
        return tokens

    def draw(self, logits: Array, rows: Sequence[int], draws: Sequence[Draw]) -> Array:
        which, tokens = _index(rows), np.empty(len(rows), dtype=np.int64)
        params = np.array([_parameters(draw) for draw in draws], dtype=_DRAW)
        self._context.library.ramet_draw(
            self._context.handle,
            logits.ctypes.data,
            which.ctypes.data,
            len(which),
            logits.shape[1],
            params.ctypes.data,
            tokens.ctypes.data,
        )
        return tokens


def _parameters(draw: Draw) -> tuple[float, float, float, float, int]:
    params = draw.params
    return draw.uniform, params.top_p, params.min_p, 1.0 / params.temperature, params.top_k


def _index(rows: Sequence[int]) -> Array:
    return np.array(rows, dtype=np.int64)
