"""Root-mean-square norms: x / √(mean(x²) + ε) · w (arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.layers.weight_slot import WeightSlot, empty_parameter


class RMSNorm(nn.Module):
    """Norm over the last dimension. With an `offset` (Gemma: the checkpoint holds w - 1) weight and arithmetic are float32, as 1 + w
    would round in a shorter type."""

    def __init__(self, size: int, eps: float, *, offset: float = 0.0, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.size, self.eps, self.offset = (size,), eps, offset
        self.weight = empty_parameter(size, dtype=torch.float32 if offset else dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.size, self.weight, self.eps)
        return F.rms_norm(x.float(), self.size, self.weight, self.eps).to(x.dtype)

    def slots(self) -> dict[str, WeightSlot]:
        return {"weight": WeightSlot(self.weight, self.size, self.offset)}


class HeadNorm(nn.Module):
    """Norm of each query and key head by itself, both in one go: the weight has one row per head, equal within q and within k."""

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, *, offset: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.num_heads, self.size, self.eps, self.offset = num_heads, (head_dim,), eps, offset
        rows = num_heads + num_kv_heads
        self.weight = empty_parameter(rows, head_dim, dtype=torch.float32 if offset else dtype, device=device)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, H + KH, D] → the same."""
        if heads.dtype == self.weight.dtype:
            return F.rms_norm(heads, self.size, None, self.eps).mul_(self.weight)
        return F.rms_norm(heads.float(), self.size, None, self.eps).mul_(self.weight).to(heads.dtype)

    def slots(self) -> dict[str, WeightSlot]:
        query, key = self.weight[: self.num_heads], self.weight[self.num_heads :]
        return {"q_norm.weight": WeightSlot(query, self.size, self.offset), "k_norm.weight": WeightSlot(key, self.size, self.offset)}
