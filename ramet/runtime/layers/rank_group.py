"""What layers ask of the other tensor-parallel ranks."""

from __future__ import annotations

from typing import Protocol

import torch


class RankGroup(Protocol):
    """Every rank calls the same methods in the same order; each call is one collective operation on the device of its tensors."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place where it can; contiguous in, the same bits on every rank out."""

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """[N, *values.shape]: what each rank gave, in their order."""

    def broadcast(self, values: torch.Tensor) -> None:
        """Overwrite with what rank 0 has."""

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
