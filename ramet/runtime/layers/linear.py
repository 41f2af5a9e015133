"""y = x Wᵀ + b, with several matrices of the checkpoint stacked into one, whole or divided among tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ramet.errors import Unsupported
from ramet.runtime.layers.quantized_weight import QuantizedSlot, QuantizedWeight, WeightScheme
from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.layers.weight_slot import Region, Slot, WeightSlot, empty_parameter

Storage = Callable[[str, int], WeightScheme | None]
"""How the matrix of this name, with so many inputs, is kept; None: as numbers."""


def storage_under(storage: Storage | None, prefix: str) -> Storage | None:
    """For a part of the model, which does not know the names of what it is part of."""
    return None if storage is None else lambda name, num_columns: storage(prefix + name, num_columns)


@dataclass(frozen=True, slots=True)
class LinearPart:
    """A matrix of the checkpoint with `rows` rows, of which the spans `held` are here."""

    name: str
    rows: int
    held: tuple[range, ...]

    @classmethod
    def whole(cls, name: str, rows: int) -> LinearPart:
        return cls(name, rows, (range(rows),))

    @property
    def num_held(self) -> int:
        return sum(len(rows) for rows in self.held)

    @property
    def region(self) -> tuple[range, ...] | None:
        return None if self.held == (range(self.rows),) else self.held


@dataclass(frozen=True, slots=True)
class LinearShape:
    """`parts`: the stacked matrices, in order; all read the same `in_features` inputs, of which `columns` are here."""

    in_features: int
    parts: tuple[LinearPart, ...]
    columns: range
    bias: bool = False

    @property
    def out_features(self) -> int:
        """Rows that are here."""
        return sum(part.num_held for part in self.parts)


class Linear(nn.Module):
    """[…, in] → […, out]. With `ranks` every rank has some of the inputs, and the sum of what they make of them is the output. Where
    `storage` says so the matrix is in `quantized`, and `weight` is empty."""

    def __init__(
        self,
        shape: LinearShape,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ranks: RankGroup | None = None,
        storage: Storage | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.ranks = shape, ranks
        scheme = None if storage is None else _scheme(shape, storage)
        self.quantized = None if scheme is None else QuantizedWeight(shape.out_features, len(shape.columns), scheme, device)
        size = (shape.out_features, len(shape.columns)) if scheme is None else (0, 0)
        self.weight = empty_parameter(*size, dtype=dtype, device=device)
        has_bias = shape.bias and (ranks is None or ranks.rank == 0)  # a sum needs it once
        self.bias = empty_parameter(shape.out_features, dtype=dtype, device=device) if has_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = F.linear(x, self.weight, self.bias) if self.quantized is None else self.quantized.linear(x, self.bias)
        return self.combine(product)

    def combine(self, product: torch.Tensor) -> torch.Tensor:
        """x Wᵀ + b as it is here → the output; `product` may be overwritten."""
        return product if self.ranks is None else self.ranks.all_reduce(product)

    def slots(self) -> dict[str, Slot]:
        """`q_proj.weight`, `q_proj.bias`, …: one slot per stacked matrix."""
        found: dict[str, Slot] = {}
        columns = None if self.shape.columns == range(self.shape.in_features) else self.shape.columns
        start = 0
        for part in self.shape.parts:
            here = slice(start, start + part.num_held)
            found[f"{part.name}.weight"] = self._slot(here, (part.rows, self.shape.in_features), Region(part.region, columns))
            if self.bias is not None:
                found[f"{part.name}.bias"] = WeightSlot(self.bias[here], (part.rows,), region=Region(part.region))
            elif self.shape.bias:
                found[f"{part.name}.bias"] = WeightSlot(self.weight.new_empty(0), (part.rows,), region=Region(rows=()))
            start = here.stop
        return found

    def _slot(self, here: slice, shape: tuple[int, int], region: Region) -> Slot:
        if self.quantized is None:
            return WeightSlot(self.weight[here], shape, region=region)
        return QuantizedSlot(self.quantized, here.start, shape, region)


def _scheme(shape: LinearShape, storage: Storage) -> WeightScheme | None:
    schemes = {storage(part.name, len(shape.columns)) for part in shape.parts}
    if len(schemes) > 1:
        names = ", ".join(part.name for part in shape.parts)
        raise Unsupported(f"{names} form one matrix, but are not quantised alike; load the model with --quantization none")
    return schemes.pop()
