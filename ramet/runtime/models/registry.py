"""The models that Ramet runs: one row per architecture name of config.json. To add a model, add a row and a logits test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ramet.errors import Unsupported

Windows = Literal["none", "all", "switched", "last", "alternate", "pattern", "no_rope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What an architecture's name implies. `defaults`: values that config.json may leave out (where it says them, it wins)."""

    gguf: str | None  # general.architecture of its GGUF files; None: they are not read
    windows: Windows = "none"  # which layers slide, where layer_types is absent
    qkv_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    fused_checkpoint: bool = False
    experts: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA: Mapping[str, Any] = MappingProxyType(
    {
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    }
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family(gguf="llama"),
        "MistralForCausalLM": Family(gguf="llama", windows="all", defaults={"sliding_window": 4096}),
        "Qwen2ForCausalLM": Family(gguf="qwen2", windows="last", qkv_bias=True, defaults={"max_window_layers": 28}),
        "Qwen3ForCausalLM": Family(gguf="qwen3", windows="last", qk_norm=True, defaults={"head_dim": 128, "max_window_layers": 28}),
        "SmolLM3ForCausalLM": Family(
            gguf="smollm3",
            windows="no_rope",
            defaults={"rope_theta": 2e6, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
        ),
        "Phi3ForCausalLM": Family(gguf="phi3", windows="all", fused_checkpoint=True, defaults={"rms_norm_eps": 1e-5}),
        "Gemma2ForCausalLM": Family(
            gguf="gemma2",
            windows="pattern",
            sandwich_norms=True,
            norm_offset=1.0,
            scaled_embedding=True,
            defaults={**_GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window_pattern": 2},
        ),
        "Gemma3ForCausalLM": Family(
            gguf="gemma3",
            windows="pattern",
            qk_norm=True,
            sandwich_norms=True,
            norm_offset=1.0,
            scaled_embedding=True,
            defaults={**_GEMMA, "rope_theta": 1e6, "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6},
        ),
        "MixtralForCausalLM": Family(
            gguf=None,
            windows="all",
            experts=True,
            defaults={"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
        ),
        "Qwen2MoeForCausalLM": Family(
            gguf=None,
            windows="alternate",
            qkv_bias=True,
            experts=True,
            defaults={
                "num_experts": 60,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
        ),
        "Qwen3MoeForCausalLM": Family(
            gguf=None,
            windows="switched",
            qk_norm=True,
            experts=True,
            defaults={"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "sliding_window": 4096},
        ),
    }
)


def family_of(architecture: str) -> Family:
    """The row of an architecture; an unknown one raises Unsupported with the known names."""
    if architecture not in FAMILIES:
        raise Unsupported(f"models of architecture {architecture!r} are not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[architecture]


def architecture_of_gguf(name: str) -> str:
    """The first architecture whose GGUF files are called `name`."""
    for architecture, family in FAMILIES.items():
        if family.gguf == name:
            return architecture
    known = ", ".join(sorted({family.gguf for family in FAMILIES.values() if family.gguf}))
    raise Unsupported(f"GGUF files of architecture {name!r} are not supported; supported: {known}")
