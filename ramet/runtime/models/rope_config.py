"""Rotary parameters out of config.json, in its old spelling (rope_theta, rope_scaling) and its new one (rope_parameters)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ramet.errors import ConfigError, Unsupported
from ramet.runtime.model_spec import FactorScaling, Llama3Scaling, RopeSpec, YarnScaling

LAYER_TYPES = ("full_attention", "sliding_attention")
KNOWN_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
        "mscale",
        "mscale_all_dim",
    },
    "longrope": {"factor", "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor"},
}
GENERAL_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}


def read_rope(config: Mapping[str, Any], layer_type: str, head_dim: int, context_len: int) -> RopeSpec:
    """Rope of the layers of one type. `context_len` is the longest sequence that will be served."""
    parameters = rope_parameters(config, layer_type)
    rotary_dim = int(head_dim * float(parameters.get("partial_rotary_factor") or 1.0))
    return RopeSpec(float(parameters["rope_theta"]), rotary_dim, _scaling(parameters, config, rotary_dim, context_len))


def rope_parameters(config: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    """One flat dictionary, `rope_type` and `rope_theta` always set; keys that its type does not know are refused."""
    given: dict[str, Any] = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    local_base = config.get("rope_local_base_freq") if layer_type == "sliding_attention" else None
    if any(name in given for name in LAYER_TYPES):
        given = dict(given.get(layer_type) or {})
    elif local_base is not None:
        given = {}  # scaling stretches the global layers only
    found = {
        "rope_type": given.get("type", "default"),
        "rope_theta": local_base if local_base is not None else config.get("rope_theta", 10_000.0),
        "partial_rotary_factor": config.get("partial_rotary_factor"),
        **{key: value for key, value in given.items() if value is not None},
    }
    if found["rope_type"] == "su" or (found["rope_type"] == "yarn" and "long_factor" in found):
        found["rope_type"] = "longrope"  # its earlier names
    _check_keys(found)
    return found


def extended_context_len(config: Mapping[str, Any]) -> int:
    """max_position_embeddings, or what YaRN stretches the original context to, where that is more."""
    context_len = int(config["max_position_embeddings"])
    parameters = rope_parameters(config, "full_attention")
    if parameters["rope_type"] == "yarn" and "factor" in parameters:
        return max(context_len, int(_original(parameters, config) * parameters["factor"]))
    return context_len


def _check_keys(parameters: Mapping[str, Any]) -> None:
    rope_type = parameters["rope_type"]
    if rope_type not in KNOWN_KEYS:
        raise Unsupported(f"rope type {rope_type!r} in config.json is not supported; supported: {', '.join(KNOWN_KEYS)}")
    known = KNOWN_KEYS[rope_type] | GENERAL_KEYS | {"original_max_position_embeddings"}
    if unknown := sorted(set(parameters) - known):
        raise Unsupported(f"rope parameter {unknown[0]!r} is not supported with rope type {rope_type!r} in config.json")


def _original(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    outside = config.get("original_max_position_embeddings")
    return int(outside or parameters.get("original_max_position_embeddings") or config["max_position_embeddings"])


def _scaling(
    parameters: Mapping[str, Any], config: Mapping[str, Any], rotary_dim: int, context_len: int
) -> FactorScaling | Llama3Scaling | YarnScaling | None:
    try:
        match parameters["rope_type"]:
            case "linear":
                return FactorScaling((float(parameters["factor"]),))
            case "dynamic":
                _check_within(int(config["max_position_embeddings"]), context_len)
                return None
            case "llama3":
                low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
                return Llama3Scaling(float(parameters["factor"]), low, high, _original(parameters, config))
            case "yarn":
                return _yarn(parameters, config)
            case "longrope":
                return _longrope(parameters, config, rotary_dim, context_len)
    except KeyError as missing:
        raise ConfigError(f"config.json: rope type {parameters['rope_type']!r} lacks {missing}") from missing
    factors = config.get("rope_frequency_factors")  # GGUF's precomputed scaling
    return FactorScaling(tuple(factors)) if factors else None


def _check_within(trained_len: int, context_len: int) -> None:
    """Dynamic NTK changes the base with each sequence's length beyond the trained one: cached keys would be wrong. Within it, it does
    nothing."""
    if context_len > trained_len:
        raise Unsupported(f"rope type 'dynamic' beyond {trained_len} tokens is not supported; pass --context-length {trained_len} or less")


def _yarn(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> YarnScaling:
    original = _original(parameters, config)
    factor = float(parameters.get("factor") or config["max_position_embeddings"] / original)
    return YarnScaling(
        factor=factor,
        original_context_len=original,
        attention_factor=_yarn_attention_factor(parameters, factor),
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        truncate=bool(parameters.get("truncate", True)),
    )


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in parameters:
        return float(parameters["attention_factor"])
    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1.0)


def _longrope(parameters: Mapping[str, Any], config: Mapping[str, Any], rotary_dim: int, context_len: int) -> FactorScaling:
    """One set of factors for all sequences, chosen by the served context length: keys are shared between sequences of any length, so
    they may depend on nothing but their position. With --context-length within the original one, the short factors serve."""
    original = _original(parameters, config)
    factors = tuple(float(f) for f in parameters["long_factor" if context_len > original else "short_factor"])
    if len(factors) != rotary_dim // 2:
        raise ConfigError(f"config.json: LongRoPE has {len(factors)} factors for {rotary_dim // 2} frequencies")
    stretch = float(parameters.get("factor") or config["max_position_embeddings"] / original)
    default = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return FactorScaling(factors, float(parameters.get("attention_factor", default)))
