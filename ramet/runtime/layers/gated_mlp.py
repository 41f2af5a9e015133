"""Gated MLP: down(act(gate x) · up x) (arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.layers.linear import Linear, LinearPart, LinearShape, Storage
from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.layers.weight_slot import Slot
from ramet.runtime.model_shard import ModelShard, shifted
from ramet.runtime.model_spec import Activation


class GatedMLP(nn.Module):
    """[T, hidden] → [T, hidden]; gate and up are one matrix. A rank has its share of the inner features."""

    def __init__(
        self,
        shard: ModelShard,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ranks: RankGroup | None = None,
        storage: Storage | None = None,
    ) -> None:
        super().__init__()
        spec, hidden = shard.spec, shard.spec.hidden_size
        down = LinearShape(spec.intermediate_size, (LinearPart.whole("down_proj", hidden),), shard.inner, spec.mlp_bias)
        gate_up = LinearShape(hidden, _gate_up(shard), range(hidden), spec.mlp_bias)
        self.gate_up = Linear(gate_up, dtype=dtype, device=device, storage=storage)
        self.down = Linear(down, dtype=dtype, device=device, ranks=ranks, storage=storage)
        self.activation = activation_of(spec.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: torch.Tensor = self.down(self.activation(gate).mul_(up))
        return out

    def slots(self) -> dict[str, Slot]:
        return {**self.gate_up.slots(), **self.down.slots()}


def activation_of(name: Activation) -> Callable[[torch.Tensor], torch.Tensor]:
    match name:
        case "silu":
            return F.silu
        case "gelu":
            return F.gelu
        case "gelu_tanh":
            return lambda x: F.gelu(x, approximate="tanh")


def _gate_up(shard: ModelShard) -> tuple[LinearPart, ...]:
    size, inner = shard.spec.intermediate_size, shard.inner
    if shard.spec.fused_checkpoint:
        return (LinearPart("gate_up_proj", 2 * size, (inner, shifted(inner, size))),)
    return LinearPart("gate_proj", size, (inner,)), LinearPart("up_proj", size, (inner,))
