"""config.json → spec: what is read, what is merged, and what is refused by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import ConfigError, RametError, Unsupported
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ExpertSpec
from ramet.runtime.models.hf_config import merge, model_spec, spec_of_config
from ramet.runtime.models.registry import FAMILIES

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
    "activation": ({"hidden_act": "relu"}, "hidden_act='relu'"),
    "gemma activation": ({"architectures": ["Gemma2ForCausalLM"], "hidden_activation": "tanh"}, "hidden_activation='tanh'"),
    "rope type": ({"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope'"),
    "rope parameter": ({"rope_scaling": {"rope_type": "linear", "factor": 2, "mrope_section": [1]}}, "mrope_section"),
    "interleaved rope": ({"rope_interleaved": True}, "rope_interleaved"),
    "quantised checkpoint": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    "latent attention": ({"architectures": ["DeepseekV3ForCausalLM"]}, "DeepseekV3ForCausalLM"),
    "gpt-oss": ({"architectures": ["GptOssForCausalLM"]}, "GptOssForCausalLM"),
    "routing in groups": ({"architectures": ["Qwen3MoeForCausalLM"], "n_group": 8}, "n_group"),
    "routing by sigmoids": ({"architectures": ["MixtralForCausalLM"], "scoring_func": "sigmoid"}, "scoring_func"),
    "experts with biases": ({"architectures": ["MixtralForCausalLM"], "mlp_bias": True}, "mlp_bias"),
    "mixture of experts": ({"num_local_experts": 8}, "num_local_experts"),
    "bidirectional attention": ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "granite's multipliers": ({"residual_multiplier": 0.22}, "residual_multiplier"),
    "layer type": ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
    "images": ({"vision_config": {"hidden_size": 8}}, "vision_config"),
}
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "no architecture": ({"architectures": []}, "architectures"),
    "no hidden size": ({"hidden_size": None}, "hidden_size"),
    "not a number": ({"vocab_size": "many"}, "vocab_size"),
    "llama3 without factor": ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor"),
    "layer types of another depth": ({"layer_types": ["full_attention"]}, "layer_types"),
    "longrope of another width": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "1 factors for 6 frequencies",
    ),
    "more experts than there are": ({"architectures": ["MixtralForCausalLM"], "num_experts_per_tok": 9}, "num_experts_per_tok=9 of 8"),
    "heads that do not divide": ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_changes_the_forward_is_refused_by_name(case: str) -> None:
    changes, name = REFUSED[case]
    with pytest.raises(Unsupported, match=name):
        spec_of_config(BASE | changes)


@pytest.mark.parametrize("case", INVALID)
def test_invalid_values_are_named(case: str) -> None:
    changes, name = INVALID[case]
    with pytest.raises(ConfigError, match=name):
        spec_of_config(BASE | changes)


def test_an_unknown_key_is_reported_and_a_harmless_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ramet"):
        spec_of_config(BASE | {"attention_dropout": 0.1, "use_cache": True})
        assert not caplog.records
        spec_of_config(BASE | {"surprise": 1})
    assert "surprise" in caplog.text


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_reads_a_config_that_says_only_the_sizes(architecture: str) -> None:
    spec = spec_of_config(BASE | {"architectures": [architecture]})
    assert spec.num_layers == 4 and spec.num_heads == spec.num_kv_heads == 4


QWEN3 = BASE | {"architectures": ["Qwen3MoeForCausalLM"], "moe_intermediate_size": 24}


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
def test_experts_are_read_by_either_name_of_their_number(key: str) -> None:
    experts = spec_of_config(QWEN3 | {key: 16, "norm_topk_prob": True, "shared_expert_intermediate_size": 0}).experts
    assert experts == ExpertSpec(count=16, per_token=8, intermediate_size=24, renormalise=True)


def test_layers_without_experts_are_named_or_counted() -> None:
    spec = spec_of_config(QWEN3 | {"mlp_only_layers": [3], "decoder_sparse_step": 2})
    assert [layer.sparse for layer in spec.layers] == [False, True, False, False]
    assert not any(layer.sparse for layer in spec_of_config(BASE).layers)


def test_context_length_is_at_most_the_models() -> None:
    assert spec_of_config(BASE).context_len == 128
    assert spec_of_config(BASE, 64).context_len == 64
    with pytest.raises(ConfigError, match="context_length=129"):
        spec_of_config(BASE, 129)


def test_yarn_stretches_the_context_and_dynamic_scaling_does_not() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert spec_of_config(BASE | {"rope_scaling": yarn}).context_len == 512
    assert spec_of_config(BASE | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}).context_len == 128


def files(tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelFiles:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return ModelFiles("huggingface", tmp_path, "m")


def test_overrides_are_merged_deeply(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0}
    found = files(tmp_path, BASE | {"rope_scaling": rope})
    spec = model_spec(found, overrides='{"rope_scaling": {"factor": 4.0}, "rope_theta": 5000.0}')
    rope_spec = spec.layers[0].rope
    assert rope_spec is not None and rope_spec.theta == 5000.0 and rope_spec.scaling is not None
    assert rope_spec.scaling.factors == (4.0,)  # type: ignore[union-attr]
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}


@pytest.mark.parametrize("overrides", ["{", "[1]", '"x"'])
def test_bad_overrides_are_named(overrides: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="json_model_override_args"):
        model_spec(files(tmp_path, BASE), overrides=overrides)


def test_end_of_sequence_comes_from_the_generation_config_first(tmp_path: Path) -> None:
    config = BASE | {"eos_token_id": 7}
    assert model_spec(files(tmp_path, config)).eos_token_ids == (7,)
    assert model_spec(files(tmp_path, config, {"eos_token_id": [8, 9]})).eos_token_ids == (8, 9)


def test_a_broken_config_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RametError, match=r"config\.json"):
        model_spec(ModelFiles("huggingface", tmp_path, "m"))
