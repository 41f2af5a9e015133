"""Gated MLP: down(act(gate x) · up x) (arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.layers.linear import Linear, LinearShape
from ramet.runtime.layers.weight_slot import WeightSlot
from ramet.runtime.model_spec import Activation, ModelSpec


class GatedMLP(nn.Module):
    """[T, hidden] → [T, hidden]; gate and up are one matrix."""

    def __init__(self, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        size = spec.intermediate_size
        parts = (("gate_up_proj", 2 * size),) if spec.fused_checkpoint else (("gate_proj", size), ("up_proj", size))
        self.gate_up = Linear(LinearShape(spec.hidden_size, parts, spec.mlp_bias), dtype=dtype, device=device)
        self.down = Linear(LinearShape(size, (("down_proj", spec.hidden_size),), spec.mlp_bias), dtype=dtype, device=device)
        self.activation = activation_of(spec.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: torch.Tensor = self.down(self.activation(gate).mul_(up))
        return out

    def slots(self) -> dict[str, WeightSlot]:
        return {**self.gate_up.slots(), **self.down.slots()}


def activation_of(name: Activation) -> Callable[[torch.Tensor], torch.Tensor]:
    match name:
        case "silu":
            return F.silu
        case "gelu":
            return F.gelu
        case "gelu_tanh":
            return lambda x: F.gelu(x, approximate="tanh")
