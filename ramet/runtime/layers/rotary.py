"""Rotary position embedding (arXiv 2104.09864) and its scalings.

Frequencies are float32 and follow `transformers` operation by operation, since a rounding difference grows with the position.
Cosines are computed once per step for all layers that share them: cheaper than a table of the whole context, which would also
have to be kept.
"""

from __future__ import annotations

import torch
from torch import nn

from ramet.runtime.model_spec import RopeSpec
from ramet.runtime.rope_frequencies import scaled_frequencies

Rotation = tuple[torch.Tensor, torch.Tensor]
"""cos and signed sin, each [T, 1, rotary_dim] in the model's dtype."""


class Rotary(nn.Module):
    """Rotates the first `rotary_dim` numbers of each head by position-dependent angles."""

    frequencies: torch.Tensor

    def __init__(self, spec: RopeSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype, self.rotary_dim = dtype, spec.rotary_dim
        self.attention_factor = getattr(spec.scaling, "attention_factor", 1.0)
        self.register_buffer("frequencies", inverse_frequencies(spec).to(device), persistent=False)

    def forward(self, positions: torch.Tensor) -> Rotation:
        """[T] positions → what `rotate` needs."""
        angles = positions[:, None, None].float() * self.frequencies
        cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return torch.cat((cos, cos), -1).to(self.dtype), torch.cat((-sin, sin), -1).to(self.dtype)


def rotate(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """[T, heads, D] → the same shape: (a, b) → (a cos - b sin, b cos + a sin) for the two halves a, b of the rotated part."""
    cos, signed_sin = rotation
    rotary_dim = cos.shape[-1]
    if rotary_dim < heads.shape[-1]:
        rotated = rotate(heads[..., :rotary_dim], rotation)
        return torch.cat((rotated, heads[..., rotary_dim:]), -1)
    swapped = heads.roll(rotary_dim // 2, -1)
    return torch.addcmul(heads * cos, swapped, signed_sin)


def inverse_frequencies(spec: RopeSpec) -> torch.Tensor:
    """[rotary_dim / 2] float32 radians per token."""
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).float() / spec.rotary_dim
    return torch.from_numpy(scaled_frequencies((spec.theta**exponents).numpy(), spec))
