"""config.json's keys about a mixture of experts → ExpertSpec. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ramet.errors import ConfigError, Unsupported
from ramet.runtime.model_spec import ExpertSpec


def read_experts(config: Mapping[str, Any]) -> ExpertSpec:
    """Raises ConfigError for numbers that do not go together. The number of experts has two names, both of which are in use for one
    family; a family whose MLPs are all experts (Mixtral) has no size of its own for them."""
    count = int(config.get("num_local_experts") or config["num_experts"])
    per_token = int(config["num_experts_per_tok"])
    if not 1 <= per_token <= count:
        raise ConfigError(f"config.json has num_experts_per_tok={per_token} of {count} experts", param="num_experts_per_tok")
    if config.get("mlp_bias"):
        raise Unsupported("config.json has mlp_bias=True, which is not supported with experts", param="mlp_bias")
    return ExpertSpec(
        count=count,
        per_token=per_token,
        intermediate_size=int(config.get("moe_intermediate_size") or config["intermediate_size"]),
        renormalise=bool(config.get("norm_topk_prob", False)),
        shared_size=int(config.get("shared_expert_intermediate_size") or 0),
    )


def sparse_layers(config: Mapping[str, Any], num_layers: int) -> list[bool]:
    """Which layers have experts: every n-th, but for those that are named."""
    every, dense = int(config.get("decoder_sparse_step", 1)), config.get("mlp_only_layers") or ()
    return [i not in dense and (i + 1) % every == 0 for i in range(num_layers)]
