"""Where one tensor of a checkpoint goes: a view into a parameter. Loaders know names and slots, layers know how they are laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a checkpoint's tensor that is wanted: spans of its rows, one behind the other, and one of its columns. None: all."""

    rows: tuple[range, ...] | None = None
    columns: range | None = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of the whole tensor."""
        if self.rows is not None:
            tensor = torch.cat([tensor[:0], *(tensor[rows.start : rows.stop] for rows in self.rows)])
        return tensor if self.columns is None else tensor[:, self.columns.start : self.columns.stop]


WHOLE = Region()


class Slot(Protocol):
    """Where the `region` of a checkpoint's tensor of `shape` goes."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def region(self) -> Region: ...

    def fill(self, source: torch.Tensor, *, add_offset: bool = True) -> None:
        """Copy the whole region, on any device and of any dtype."""

    def fill_rows(self, start: int, source: torch.Tensor) -> None:
        """Copy rows start … start+len(source)-1 of the region: large tensors arrive in pieces."""


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """`target` is filled from the `region` of a tensor of `shape`, or from whole rows of that; a shorter shape is broadcast over the
    leading dimensions. `offset` is added to what the checkpoint holds."""

    target: torch.Tensor
    shape: tuple[int, ...]
    offset: float = 0.0
    region: Region = WHOLE

    def fill(self, source: torch.Tensor, *, add_offset: bool = True) -> None:
        """See `Slot`, as for the next."""
        self.target.copy_(source)
        if add_offset and self.offset:
            self.target.add_(self.offset)

    def fill_rows(self, start: int, source: torch.Tensor) -> None:
        self.target[start : start + source.shape[0]].copy_(source)


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.nn.Parameter:
    """A parameter that a loader will fill; nothing is ever trained."""
    return torch.nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)
