"""y = x Wᵀ + b, with several matrices of the checkpoint stacked into one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.layers.weight_slot import WeightSlot, empty_parameter, slot_of


@dataclass(frozen=True, slots=True)
class LinearShape:
    """`parts`: name and number of rows of each stacked matrix, in order; all read the same `in_features` inputs."""

    in_features: int
    parts: tuple[tuple[str, int], ...]
    bias: bool = False

    @property
    def out_features(self) -> int:
        return sum(rows for _, rows in self.parts)


class Linear(nn.Module):
    """[…, in] → […, out]."""

    def __init__(self, shape: LinearShape, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape = shape
        self.weight = empty_parameter(shape.out_features, shape.in_features, dtype=dtype, device=device)
        self.bias = empty_parameter(shape.out_features, dtype=dtype, device=device) if shape.bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)

    def slots(self) -> dict[str, WeightSlot]:
        """`q_proj.weight`, `q_proj.bias`, …: one slot per stacked matrix."""
        found: dict[str, WeightSlot] = {}
        start = 0
        for name, rows in self.shape.parts:
            found[f"{name}.weight"] = slot_of(self.weight[start : start + rows])
            if self.bias is not None:
                found[f"{name}.bias"] = slot_of(self.bias[start : start + rows])
            start += rows
        return found
