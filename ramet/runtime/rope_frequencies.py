"""How the frequencies of a rotary embedding are scaled for longer contexts, in float32 as `transformers` does it. No torch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ramet.runtime.model_spec import FactorScaling, Llama3Scaling, RopeSpec, YarnScaling

Floats = npt.NDArray[np.float32]


def scaled_frequencies(powers: Floats, spec: RopeSpec) -> Floats:
    """[rotary_dim / 2] radians per token, from theta^(2i / rotary_dim)."""
    match spec.scaling:
        case FactorScaling(factors):
            return np.float32(1.0) / (np.array(factors, dtype=np.float32) * powers)
        case Llama3Scaling():
            return _llama3(np.float32(1.0) / powers, spec.scaling)
        case YarnScaling():
            return _yarn(powers, spec, spec.scaling)
        case None:
            return np.float32(1.0) / powers


def rotation_tables(rope: RopeSpec, context_len: int) -> tuple[Floats, Floats]:
    """Cosine and sine [context, rotary_dim / 2]."""
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / np.float32(rope.rotary_dim)
    frequencies = scaled_frequencies(np.power(np.float32(rope.theta), exponents), rope)
    angles = np.outer(np.arange(context_len, dtype=np.float32), frequencies)
    factor = np.float32(getattr(rope.scaling, "attention_factor", 1.0))
    return np.cos(angles) * factor, np.sin(angles) * factor


def _llama3(frequencies: Floats, scaling: Llama3Scaling) -> Floats:
    one = np.float32(1)
    wavelengths = one / frequencies * np.float32(2 * math.pi)  # a number divided by a tensor is this product, in torch
    turns = one / wavelengths * np.float32(scaling.original_context_len)
    ramp = (turns - np.float32(scaling.low_freq_factor)) / np.float32(scaling.high_freq_factor - scaling.low_freq_factor)
    slow = frequencies / np.float32(scaling.factor)
    between = (one - ramp) * frequencies / np.float32(scaling.factor) + ramp * frequencies
    long = wavelengths > np.float32(scaling.original_context_len / scaling.low_freq_factor)
    short = wavelengths < np.float32(scaling.original_context_len / scaling.high_freq_factor)
    return np.where(long, slow, np.where(short, frequencies, between))


def _yarn(powers: Floats, spec: RopeSpec, scaling: YarnScaling) -> Floats:
    low, high = (_dimension_of(turns, spec, scaling) for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    width = (high - low) or 0.001  # a step, where the ramp has no width
    numbers: Floats = np.arange(spec.rotary_dim // 2, dtype=np.float32)
    interpolated: Floats = ((numbers - np.float32(low)) / np.float32(width)).clip(0, 1)
    kept = np.float32(1) - interpolated
    one = np.float32(1)
    return one / (np.float32(scaling.factor) * powers) * (one - kept) + one / powers * kept


def _dimension_of(turns: float, spec: RopeSpec, scaling: YarnScaling) -> float:
    """The dimension whose angle makes `turns` full turns over the original context (equation 17 of the paper's appendix)."""
    return spec.rotary_dim * math.log(scaling.original_context_len / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))
