"""GGUF metadata in config.json's words, so that one reader makes the spec of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ramet.errors import ConfigError, Unsupported
from ramet.runtime.gguf_file import GgufFile, open_gguf
from ramet.runtime.gguf_quants import dequantise
from ramet.runtime.models.registry import architecture_of_gguf

KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}
"""Key behind the architecture's name → config.json's key."""
ELSEWHERE = {
    "attention.value_length",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.scale",
    "rope.dimension_count",
    "rope.dimension_count_swa",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.finetuned",
    "attention.causal",
}
"""Keys that are read below, or say nothing that the forward needs."""
COUNTS = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
"""Keys that every file has."""
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""Tokens that end a turn; a file names only one end-of-sequence token, and not always this one."""
CONTROL = 3  # token type


def gguf_config(path: Path) -> dict[str, Any]:
    """What config.json would say of this file; Mistral is called llama there, and told by its window. Raises Unsupported for what would
    change the forward."""
    file = open_gguf(path)
    metadata = file.metadata
    name = str(metadata.get("general.architecture", ""))
    architecture = architecture_of_gguf(name)  # refused before its keys are
    own = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    if unknown := sorted(set(own) - set(KEYS) - ELSEWHERE):
        raise Unsupported(f"{path}: metadata {name}.{unknown[0]} is not supported", param=unknown[0])
    config: dict[str, Any] = {KEYS[key]: _scalar(key, value) for key, value in own.items() if key in KEYS}
    for key in COUNTS:
        if not isinstance(count := config.get(KEYS[key]), int) or count < 1:
            raise ConfigError(f"{path}: metadata {name}.{key} must be a positive integer, but is {count!r}", param=key)
    _check_value_heads(own, path)
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    return {
        "vocab_size": len(tokens),
        **config,
        **_rope(own, config, file),
        **_gemma(name, own, config),
        "architectures": ["MistralForCausalLM" if "sliding_window" in config and name == "llama" else architecture],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": name == "llama" and "blk.0.attn_q.bias" in file.tensors,
        "eos_token_id": _eos(metadata),
        "dtype": "float16",
    }


def _scalar(key: str, value: Any) -> Any:
    """Some files hold one value per layer; equal ones are one value."""
    if not isinstance(value, np.ndarray):
        return value
    if np.unique(value).size != 1:
        raise Unsupported(f"GGUF metadata {key} differs between layers, which is not supported", param=key)
    return value.flat[0].item()


def _check_value_heads(own: Mapping[str, Any], path: Path) -> None:
    key_len, value_len = own.get("attention.key_length"), own.get("attention.value_length")
    if key_len is not None and value_len is not None and key_len != value_len:
        raise Unsupported(f"{path}: keys of {key_len} with values of {value_len} numbers per head are not supported")
    if own.get("attention.causal") is False:
        raise Unsupported(f"{path}: attention that is not causal is not supported")


def _rope(own: Mapping[str, Any], config: Mapping[str, Any], file: GgufFile) -> dict[str, Any]:
    found: dict[str, Any] = {}
    head_dim = config.get("head_dim") or config.get("hidden_size", 0) // config.get("num_attention_heads", 1)
    if head_dim and "rope.dimension_count" in own:
        found["partial_rotary_factor"] = own["rope.dimension_count"] / head_dim
    original = own.get("rope.scaling.original_context_length")
    if "rope_freqs.weight" in file.tensors:
        found["rope_frequency_factors"] = _numbers(file, "rope_freqs.weight")
    elif "rope_factors_long.weight" in file.tensors:
        long, short = _numbers(file, "rope_factors_long.weight"), _numbers(file, "rope_factors_short.weight")
        found["rope_scaling"] = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        found["rope_scaling"] |= {"original_max_position_embeddings": original}
        if "rope.scaling.attn_factor" in own:
            found["rope_scaling"]["attention_factor"] = own["rope.scaling.attn_factor"]
    elif (kind := own.get("rope.scaling.type", "none")) != "none":
        found["rope_scaling"] = {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
        if original is not None:
            found["rope_scaling"]["original_max_position_embeddings"] = original
    return found


def _numbers(file: GgufFile, name: str) -> list[float]:
    return [float(value) for value in dequantise(file.tensors[name]).ravel()]


def _gemma(name: str, own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma's query scale is not in the metadata: it is the head size, but for the two 27B models."""
    if not name.startswith("gemma"):
        return {}
    is_27b = (name, config.get("num_hidden_layers")) in {("gemma2", 46), ("gemma3", 62)}
    if "head_dim" not in config:
        raise ConfigError(f"GGUF metadata {name}.attention.key_length is missing")
    return {"query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if is_27b else config["head_dim"]}


def _eos(metadata: Mapping[str, Any]) -> list[int]:
    ids = {metadata[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in metadata}
    tokens, types = metadata.get("tokenizer.ggml.tokens", []), metadata.get("tokenizer.ggml.token_type", ())
    ids |= {i for i in np.flatnonzero(np.equal(types, CONTROL)) if i < len(tokens) and tokens[i] in END_OF_TURN}
    return sorted(int(i) for i in ids)
