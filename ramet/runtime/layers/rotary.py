"""Rotary position embedding (arXiv 2104.09864) and its scalings.

Frequencies are float32 and follow `transformers` operation by operation, since a rounding difference grows with the position.
Cosines are computed once per step for all layers that share them: cheaper than a table of the whole context, which would also
have to be kept.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ramet.runtime.model_spec import FactorScaling, Llama3Scaling, RopeSpec, YarnScaling

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
    powers = spec.theta**exponents
    match spec.scaling:
        case FactorScaling(factors):
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * powers)
        case Llama3Scaling():
            return _llama3(1.0 / powers, spec.scaling)
        case YarnScaling():
            return _yarn(powers, spec, spec.scaling)
        case None:
            return 1.0 / powers


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_context_len / wavelengths
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
    long = wavelengths > scaling.original_context_len / scaling.low_freq_factor
    short = wavelengths < scaling.original_context_len / scaling.high_freq_factor
    return torch.where(long, frequencies / scaling.factor, torch.where(short, frequencies, between))


def _yarn(powers: torch.Tensor, spec: RopeSpec, scaling: YarnScaling) -> torch.Tensor:
    low, high = (_dimension_of(turns, spec, scaling) for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    width = (high - low) or 0.001  # a step, where the ramp has no width
    interpolated = ((torch.arange(spec.rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - interpolated
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _dimension_of(turns: float, spec: RopeSpec, scaling: YarnScaling) -> float:
    """The dimension whose angle makes `turns` full turns over the original context (equation 17 of the paper's appendix)."""
    return spec.rotary_dim * math.log(scaling.original_context_len / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))
