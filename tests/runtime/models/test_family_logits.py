"""Every family gives transformers' logits: whole prefill, chunked prefill and decode, in float32 on tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ramet.runtime.models.registry import FAMILIES
from tests.runtime.models.tiny_models import Sequencer, assert_close, check_against, load_directory, tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
PHI = {"num_key_value_heads": 2, "pad_token_id": 0}
GEMMA = {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24, "num_hidden_layers": 4}
WINDOW = {"use_sliding_window": True, "sliding_window": 6}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied, own head_dim, biases": (
        "Llama",
        {"tie_word_embeddings": True, "head_dim": 16, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3},
    ),
    "llama 3 scaling": ("Llama", {"rope_parameters": LLAMA3}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "llama dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}}),
    "llama yarn": ("Llama", {"rope_parameters": YARN}),
    "llama yarn, own ramp": (
        "Llama",
        {"rope_parameters": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False}},
    ),
    "llama gelu": ("Llama", {"hidden_act": "gelu"}),
    "mistral, window": ("Mistral", {"sliding_window": 7}),
    "mistral, no window": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen2, window in late layers": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "smollm3, window without rope": (
        "SmolLM3",
        {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0], "use_sliding_window": True, "sliding_window": 6},
    ),
    "phi3": ("Phi3", {**PHI, "sliding_window": 8}),
    "phi3, partial rotary": ("Phi3", {**PHI, "head_dim": None, "partial_rotary_factor": 0.5}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma2, tight caps": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gemma3, scaled": ("Gemma3Text", {**GEMMA, "num_hidden_layers": 6, "rope_parameters": GEMMA3_ROPE}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral, window": ("Mixtral", {"num_local_experts": 4, "sliding_window": 7, "head_dim": 16}),
    "qwen2 moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen2 moe, window in some layers": (
        "Qwen2Moe",
        {**EXPERTS, "shared_expert_intermediate_size": 40, "norm_topk_prob": True, "qkv_bias": False, **WINDOW, "max_window_layers": 2},
    ),
    "qwen3 moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3 moe, dense layers and window": ("Qwen3Moe", {**EXPERTS, "mlp_only_layers": [0], "decoder_sparse_step": 2, **WINDOW}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    model = tiny_model(family, **{key: value for key, value in changes.items() if value is not None or key == "sliding_window"})
    model.save_pretrained(tmp_path)
    check_against(model, load_directory(tmp_path))


def test_every_row_of_the_registry_has_a_case() -> None:
    covered = {f"{family.removesuffix('Text')}ForCausalLM" for family, _ in CASES.values()}
    assert covered == set(FAMILIES)


@pytest.mark.parametrize(("context_length", "length"), [(32, 30), (None, 40)])
def test_longrope_serves_the_factors_of_its_context_length(context_length: int | None, length: int, tmp_path: Path) -> None:
    model = tiny_model("Phi3", original_max_position_embeddings=32, rope_parameters=LONGROPE)
    model.save_pretrained(tmp_path)
    ids = list(range(length))
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0]
    assert_close(Sequencer(load_directory(tmp_path, context_length=context_length)).run(ids), wanted)


def test_only_wanted_logits_are_computed(tmp_path: Path) -> None:
    tiny_model("Llama").save_pretrained(tmp_path)
    loaded = load_directory(tmp_path)
    ids = list(range(12))
    every = Sequencer(loaded).run(ids)
    some = Sequencer(loaded).run(ids, wanted=[11, 3])
    assert some.shape == (2, loaded.info.vocab_size) and some.dtype == torch.float32
    torch.testing.assert_close(some, every[[11, 3]])
