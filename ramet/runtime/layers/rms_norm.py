"""Root-mean-square norms: x / √(mean(x²) + ε) · w (arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.layers.weight_slot import WeightSlot, empty_parameter


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor | float) -> torch.Tensor:
    """Norm over the last dimension, in the type of `x`. `eps` is a tensor where it meets CPU arithmetic.

    On CPU torch composes its own rms_norm of full-size squares and means; one pass for the length of each row is up to twenty times
    faster on long inputs. It is F.rms_norm's equal (its slow twin, and what other devices run).
    """
    if isinstance(eps, float):
        return F.rms_norm(x, (x.shape[-1],), weight, eps) if weight.dim() == 1 else F.rms_norm(x, (x.shape[-1],), None, eps).mul_(weight)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)


class RMSNorm(nn.Module):
    """Norm over the last dimension. With an `offset` (Gemma: the checkpoint holds w - 1) weight and arithmetic are float32, as 1 + w
    would round in a shorter type."""

    def __init__(self, size: int, eps: float, *, offset: float = 0.0, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.size, self.offset = size, offset
        self.eps = _epsilon(eps, device)
        self.weight = empty_parameter(size, dtype=torch.float32 if offset else dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _norm_in_its_type(x, self.weight, self.eps)

    def slots(self) -> dict[str, WeightSlot]:
        return {"weight": WeightSlot(self.weight, (self.size,), self.offset)}


class HeadNorm(nn.Module):
    """Norm of each query and key head by itself, both in one go: the weight has one row per head, equal within q and within k."""

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, *, offset: float, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.offset = num_heads, head_dim, offset
        self.eps = _epsilon(eps, device)
        self.weight = empty_parameter(num_heads + num_kv_heads, head_dim, dtype=torch.float32 if offset else dtype, device=device)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, H + KH, D] → the same."""
        return _norm_in_its_type(heads, self.weight, self.eps)

    def slots(self) -> dict[str, WeightSlot]:
        query, key, shape = self.weight[: self.num_heads], self.weight[self.num_heads :], (self.head_dim,)
        return {"q_norm.weight": WeightSlot(query, shape, self.offset), "k_norm.weight": WeightSlot(key, shape, self.offset)}


def _epsilon(eps: float, device: torch.device) -> torch.Tensor | float:
    return torch.tensor(eps) if device.type == "cpu" else eps


def _norm_in_its_type(x: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor | float) -> torch.Tensor:
    """On CPU, and where the weight is float32, half precision is widened first: a sum of squares does not fit in it."""
    if x.dtype == torch.float32 or (isinstance(eps, float) and x.dtype == weight.dtype):
        return rms_norm(x, weight, eps)
    return rms_norm(x.float(), weight, eps).to(x.dtype)
