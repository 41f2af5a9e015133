"""Where one tensor of a checkpoint goes: a view into a parameter. Loaders know names and slots, layers know how they are laid out."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """`target` is filled from a tensor of `shape`, or of whole rows of it; a shorter shape is broadcast over the leading dimensions.
    `offset` is added to what the checkpoint holds."""

    target: torch.Tensor
    shape: tuple[int, ...]
    offset: float = 0.0

    def fill(self, source: torch.Tensor, *, add_offset: bool = True) -> None:
        """Copy the whole tensor, on any device and of any dtype."""
        self.target.copy_(source)
        if add_offset and self.offset:
            self.target.add_(self.offset)

    def fill_rows(self, start: int, source: torch.Tensor) -> None:
        """Copy rows start … start+len(source)-1 of a matrix: large tensors arrive in pieces."""
        self.target[start : start + source.shape[0]].copy_(source)


def slot_of(target: torch.Tensor) -> WeightSlot:
    """The slot that a tensor fills exactly."""
    return WeightSlot(target, tuple(target.shape))


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.nn.Parameter:
    """A parameter that a loader will fill; nothing is ever trained."""
    return torch.nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)
