"""config.json (or GGUF metadata in the same words) → ModelSpec. What changes the forward and is not implemented is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ramet.errors import ConfigError, Unsupported
from ramet.log import get_logger
from ramet.runtime.model_files import ModelFiles, generation_defaults, read_json
from ramet.runtime.model_spec import Activation, LayerSpec, ModelSpec
from ramet.runtime.models.config_keys import EXPERTS, HARMLESS, ONLY, READ
from ramet.runtime.models.expert_config import read_experts, sparse_layers
from ramet.runtime.models.gguf_config import gguf_config
from ramet.runtime.models.quantization_config import checkpoint_format
from ramet.runtime.models.registry import Family, family_of
from ramet.runtime.models.rope_config import extended_context_len, read_rope

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
logger = get_logger(__name__)


def model_spec(files: ModelFiles, *, overrides: str = "{}", context_length: int | None = None) -> ModelSpec:
    """Read a model's config. `overrides`: a JSON object merged over it. `context_length`: the longest sequence wanted; at most what the
    model was made for. Raises Unsupported or ConfigError with the config's key."""
    config = merge(read_config(files), _overrides(overrides))
    eos = generation_defaults(files).get("eos_token_id", config.get("eos_token_id"))
    return spec_of_config({**config, "eos_token_id": eos}, context_length)


def read_config(files: ModelFiles) -> dict[str, Any]:
    """config.json, or a GGUF file's metadata in config.json's words. Early GPTQ checkpoints say how they were made in a file beside it."""
    if files.format == "gguf":
        return gguf_config(files.path)
    config, beside = read_json(files.path / "config.json"), read_json(files.path / "quantize_config.json", missing_ok=True)
    return {"quantization_config": {"quant_method": "gptq", **beside}, **config} if beside else config


def merge(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides win; objects are merged key by key."""
    merged = dict(config)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def spec_of_config(given: Mapping[str, Any], context_length: int | None = None) -> ModelSpec:
    """The spec of a config that has config.json's keys."""
    architecture = _architecture(given)
    family = family_of(architecture)
    _check_keys(given, family)
    config = {**family.defaults, **{key: value for key, value in given.items() if value is not None or key == "sliding_window"}}
    num_heads, hidden_size = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
    head_dim = int(config.get("head_dim") or hidden_size // num_heads)
    context_len = _context_len(config, context_length)
    return ModelSpec(
        architecture=architecture,
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, num_heads),
        head_dim=head_dim,
        layers=_layers(config, family, head_dim, context_len),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        activation=_activation(config),
        context_len=context_len,
        attention_scale=float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=(family.qkv_bias and bool(config.get("qkv_bias", True))) or bool(config.get("attention_bias", False)),
        output_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        sandwich_norms=family.sandwich_norms,
        norm_offset=family.norm_offset,
        embedding_scale=hidden_size**0.5 if family.scaled_embedding else 1.0,
        attention_softcap=config.get("attn_logit_softcapping"),
        logit_softcap=config.get("final_logit_softcapping"),
        fused_checkpoint=family.fused_checkpoint,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
        eos_token_ids=_token_ids(config.get("eos_token_id")),
        checkpoint=checkpoint_format(config),
        experts=read_experts(config) if family.experts else None,
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    if len(names) != 1:
        raise ConfigError(f"config.json names {len(names)} architectures; exactly one is needed", param="architectures")
    return str(names[0])


def _overrides(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"json_model_override_args is not JSON: {error}", param="json_model_override_args") from error
    if not isinstance(value, dict):
        raise ConfigError("json_model_override_args is not a JSON object", param="json_model_override_args")
    return value


def _check_keys(config: Mapping[str, Any], family: Family) -> None:
    read = READ | EXPERTS if family.experts else READ
    for key, allowed in ONLY.items():
        if key in config and key not in read and config[key] not in allowed:
            raise Unsupported(f"config.json has {key}={config[key]!r}, which is not supported", param=key)
    if unknown := sorted(set(config) - read - HARMLESS - set(ONLY)):
        logger.warning("config.json keys without a meaning for this build: %s", ", ".join(unknown))


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json needs {key} as a positive integer, but has {value!r}", param=key)
    return value


def _num_kv_heads(config: Mapping[str, Any], num_heads: int) -> int:
    count = int(config.get("num_key_value_heads") or num_heads)
    if num_heads % count:
        raise ConfigError(f"config.json has num_key_value_heads={count}, which does not divide {num_heads}", param="num_key_value_heads")
    return count


def _context_len(config: Mapping[str, Any], wanted: int | None) -> int:
    _integer(config, "max_position_embeddings")
    longest = extended_context_len(config)
    if wanted is not None and wanted > longest:
        raise ConfigError(
            f"context_length={wanted} is more than the model's {longest}; stretch it with rope_scaling in --json-model-override-args",
            param="context_length",
        )
    return wanted or longest


def _activation(config: Mapping[str, Any]) -> Activation:
    key = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    name = config.get(key, "silu")
    if name not in ACTIVATIONS:
        raise Unsupported(f"config.json has {key}={name!r}, which is not supported; supported: {', '.join(ACTIVATIONS)}", param=key)
    return ACTIVATIONS[name]


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _layers(config: Mapping[str, Any], family: Family, head_dim: int, context_len: int) -> tuple[LayerSpec, ...]:
    types = _layer_types(config, family)
    ropes = {kind: read_rope(config, kind, head_dim, context_len) for kind in set(types)}
    window = config.get("sliding_window")
    with_rope = _rope_layers(config, family, len(types))
    sparse = sparse_layers(config, len(types)) if family.experts else [False] * len(types)
    return tuple(
        LayerSpec(ropes[kind] if rotated else None, window if kind == "sliding_attention" else None, is_sparse)
        for kind, rotated, is_sparse in zip(types, with_rope, sparse, strict=True)
    )


def _rope_layers(config: Mapping[str, Any], family: Family, num_layers: int) -> list[bool]:
    if family.windows != "no_rope":
        return [True] * num_layers
    every = int(config["no_rope_layer_interval"])
    flags = config.get("no_rope_layers") or [(i + 1) % every != 0 for i in range(num_layers)]
    return [bool(flag) for flag in flags[:num_layers]]


def _layer_types(config: Mapping[str, Any], family: Family) -> list[str]:
    num_layers = _integer(config, "num_hidden_layers")
    types = config.get("layer_types")
    if types is None:
        return ["sliding_attention" if slides else "full_attention" for slides in _sliding_layers(config, family, num_layers)]
    if len(types) != num_layers:
        raise ConfigError(f"config.json has {len(types)} layer_types for {num_layers} layers", param="layer_types")
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise Unsupported(f"config.json has layer type {min(unknown)!r}, which is not supported", param="layer_types")
    return list(types)


def _sliding_layers(config: Mapping[str, Any], family: Family, num_layers: int) -> list[bool]:
    """Which layers have a window, by the family's rule."""
    if config.get("sliding_window") is None:
        return [False] * num_layers
    switched_on = bool(config.get("use_sliding_window", False))
    match family.windows:
        case "none":
            return [False] * num_layers
        case "all":
            return [True] * num_layers
        case "switched":
            return [switched_on] * num_layers
        case "alternate":
            return [switched_on and i % 2 == 0 and i < int(config["max_window_layers"]) for i in range(num_layers)]
        case "last":
            return [switched_on and i >= int(config["max_window_layers"]) for i in range(num_layers)]
        case "pattern":
            every = int(config.get("_sliding_window_pattern") or config["sliding_window_pattern"])
            return [(i + 1) % every != 0 for i in range(num_layers)]
        case "no_rope":
            return [switched_on and not rotated for rotated in _rope_layers(config, family, num_layers)]
