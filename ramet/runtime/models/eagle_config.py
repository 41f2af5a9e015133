"""config.json of an EAGLE-3 head (arXiv 2503.01840), of those made for SGLang or for vLLM → HeadSpec. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramet.errors import ConfigError, Unsupported
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.hf_config import read_config, spec_of_config

PARAM = "speculative_draft_model_path"
_NUM_TAPS = 3
_OF_THE_HEAD = (
    "draft_vocab_size",
    "eagle_aux_hidden_state_layer_ids",
    "eagle_config",
    "has_no_defaults_at_init",
    "norm_before_residual",
    "speculators_config",
    "speculators_model_type",
    "speculators_version",
    "target_hidden_size",
    "transformer_layer_config",
)


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """`decoder`: its only layer, as a model of the target's vocabulary. `num_tokens`: how many of these it can guess. `taps`: the target's
    layers before which it reads the residual stream, `target_size` wide. `norm_before_residual`: its own stream begins with the normed
    features."""

    decoder: ModelSpec
    num_tokens: int
    taps: tuple[int, ...]
    target_size: int
    norm_before_residual: bool = False


def read_head_spec(files: ModelFiles, target: ModelSpec) -> HeadSpec:
    """Raises `ConfigError` where the files are no EAGLE-3 head, or not of this target, `Unsupported` for one of several layers."""
    if files.format != "huggingface":
        raise Unsupported(f"{files.path}: EAGLE-3 heads are read from Hugging Face directories only", param=PARAM)
    return head_spec(read_config(files), target, files.name)


def head_spec(given: Mapping[str, Any], target: ModelSpec, name: str = "the head") -> HeadSpec:
    """As `read_head_spec`, of a config with config.json's keys."""
    config = {**given, **(given.get("transformer_layer_config") or {})}
    if "draft_vocab_size" not in config:
        message = f"{name} is no EAGLE-3 head: its config.json has no draft_vocab_size. A small model guesses with STANDALONE"
        raise ConfigError(message, param=PARAM)
    if config.get("num_hidden_layers", 1) != 1:
        raise Unsupported(f"{name} has {config['num_hidden_layers']} layers; EAGLE-3 heads have one", param=PARAM)
    target_size = int(config.get("target_hidden_size") or config["hidden_size"])
    if target_size != target.hidden_size:
        message = f"{name} was made for a model of hidden size {target_size}, not of {target.hidden_size}: it belongs to another one"
        raise ConfigError(message, param=PARAM)
    as_a_model = {key: value for key, value in config.items() if key not in _OF_THE_HEAD} | {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "vocab_size": target.vocab_size,
        "tie_word_embeddings": False,
        "max_position_embeddings": max(int(config.get("max_position_embeddings") or 0), target.context_len),
    }
    num_tokens = int(config["draft_vocab_size"] or target.vocab_size)
    return HeadSpec(
        spec_of_config(as_a_model), num_tokens, _taps(config, target, name), target_size, bool(config.get("norm_before_residual", False))
    )


def _taps(config: Mapping[str, Any], target: ModelSpec, name: str) -> tuple[int, ...]:
    """SGLang's key names the layers whose output is read, vLLM's those whose input is."""
    behind = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    before = config.get("eagle_aux_hidden_state_layer_ids")
    count = target.num_layers
    taps = tuple(int(layer) + 1 for layer in behind) if behind else tuple(before or (2, count // 2, count - 3))
    if len(taps) != _NUM_TAPS or not all(0 <= layer < count for layer in taps):
        message = f"{name} reads the streams before the layers {', '.join(map(str, taps))}; three of the model's {count} are wanted"
        raise ConfigError(message, param=PARAM)
    return taps
