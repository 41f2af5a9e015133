"""The seam between a checkpoint's format and the model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class Piece:
    """A checkpoint's tensor, or rows of it from `start` on (None: the whole). `read` brings the values; it may run in any thread."""

    name: str
    num_bytes: int
    read: Callable[[], torch.Tensor]
    start: int | None = None


class WeightSource(Protocol):
    """A checkpoint on disk, in Hugging Face's tensor names."""

    @property
    def adds_norm_offset(self) -> bool:
        """True where norm weights are whole although the family stores them minus an offset (GGUF)."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor, without reading it."""

    def pieces(self, names: Iterable[str]) -> Iterator[Piece]:
        """The named tensors, each whole or as pieces that cover its rows once."""
