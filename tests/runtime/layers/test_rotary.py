"""Rotary embedding: frequencies equal transformers', rotation equals complex multiplication."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ramet.runtime.layers.rotary import Rotary, inverse_frequencies, rotate
from ramet.runtime.model_spec import RopeSpec
from ramet.runtime.models.rope_config import read_rope

CPU = torch.device("cpu")
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "beta_fast": 16,
    },
}


@pytest.mark.parametrize("name", ROPES)
def test_cos_and_sin_equal_those_of_transformers_far_out(name: str) -> None:
    config = {"rope_parameters": {**ROPES[name], "rope_theta": 500_000.0}, "max_position_embeddings": 131_072}
    theirs = LlamaRotaryEmbedding(LlamaConfig(hidden_size=512, num_attention_heads=4, **config))
    ours = Rotary(read_rope(config, "full_attention", 128, 131_072), dtype=torch.float32, device=CPU)
    positions = torch.tensor([0, 1, 2, 1000, 40_000, 131_071])
    cos, sin = theirs(torch.zeros(1), positions[None])
    our_cos, our_sin = ours(positions)
    torch.testing.assert_close(our_cos[:, 0], cos[0], rtol=0, atol=2e-6 if name == "default" else 0.02)
    torch.testing.assert_close(our_sin[:, 0, 64:], sin[0, :, 64:], rtol=0, atol=2e-6 if name == "default" else 0.02)
    torch.testing.assert_close(inverse_frequencies(read_rope(config, "full_attention", 128, 131_072)), theirs.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_rotation_is_complex_multiplication_of_the_first_numbers(rotary_dim: int) -> None:
    rotary = Rotary(RopeSpec(100.0, rotary_dim), dtype=torch.float32, device=CPU)
    heads, positions = torch.randn(5, 3, 8), torch.tensor([0, 3, 1, 70, 9])
    found = rotate(heads, rotary(positions))
    half = rotary_dim // 2
    angles = positions[:, None, None] * rotary.frequencies
    turned = torch.complex(heads[..., :half], heads[..., half:rotary_dim]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag, heads[..., rotary_dim:]), -1))
    torch.testing.assert_close(found[0], heads[0])
