"""The seam between a checkpoint's format and the model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ramet.runtime.layers.quantized_weight import GroupedMatrix
from ramet.runtime.layers.weight_slot import Region


@dataclass(frozen=True, slots=True)
class Piece:
    """A region of a checkpoint's tensor, or rows of that region from `start` on (None: all). `read` brings the values, or the codes that
    stand for all of them; it may run in any thread."""

    name: str
    num_bytes: int
    read: Callable[[], torch.Tensor | GroupedMatrix]
    start: int | None = None


class WeightSource(Protocol):
    """A checkpoint on disk, in Hugging Face's tensor names."""

    @property
    def adds_norm_offset(self) -> bool:
        """True where norm weights are whole although the family stores them minus an offset (GGUF)."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor, without reading it."""

    def pieces(self, wanted: Mapping[str, Region]) -> Iterator[Piece]:
        """These regions of the named tensors, each whole or as pieces that cover its rows once; nothing else is read."""
