"""Tiny EAGLE-3 heads with random weights, saved as checkpoints, and what they must guess: one plain pass over the whole sequence for every
guess, on transformers' own hidden states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import PreTrainedModel

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "draft_vocab_size": 40,
}


def head_tensors(model: Any, config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Of every tensor, random numbers; the tokens that can be guessed are a random choice of the model's."""
    size, inner, count = config["hidden_size"], config["intermediate_size"], config["draft_vocab_size"]
    head_dim = config.get("head_dim") or size // config["num_attention_heads"]
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "fc.weight": (size, 3 * model.config.hidden_size),
        "lm_head.weight": (count, size),
        "midlayer.self_attn.q_proj.weight": (query, 2 * size),
        "midlayer.self_attn.k_proj.weight": (key, 2 * size),
        "midlayer.self_attn.v_proj.weight": (key, 2 * size),
        "midlayer.self_attn.o_proj.weight": (size, query),
        "midlayer.mlp.gate_proj.weight": (inner, size),
        "midlayer.mlp.up_proj.weight": (inner, size),
        "midlayer.mlp.down_proj.weight": (size, inner),
    }
    norms = ["norm", "midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm"]
    found = {name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()}
    found |= {f"{name}.weight": 1 + 0.2 * torch.randn(size, generator=generator) for name in norms}
    tokens = torch.randperm(model.config.vocab_size, generator=generator)[:count].sort().values
    return found | {"d2t": tokens - torch.arange(count), "t2d": torch.zeros(model.config.vocab_size).index_fill_(0, tokens, 1).bool()}


def save_head(path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] = CONFIG) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


class PlainHead:
    """The head's mathematics over whole sequences; `taps`: the model's layers before which the stream is read."""

    def __init__(
        self, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] = CONFIG, taps: Sequence[int] = ()
    ) -> None:
        count = model.config.num_hidden_layers
        self.model, self.tensors, self.config, self.taps = model, dict(tensors), config, taps or (2, count // 2, count - 3)
        self.tokens = tensors["d2t"] + torch.arange(len(tensors["d2t"]))

    def chain(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest guesses behind `ids`, one after the other."""
        with torch.inference_mode():
            streams = self.fuse(self.features(ids[:-1]))
            tokens = list(ids[1:])
            for _ in range(count):
                hidden = self.layer(streams, tokens)[-1]
                tokens.append(int(self.tokens[self.logits(hidden).argmax()]))
                streams = torch.cat((streams, hidden[None]))
        return tokens[len(tokens) - count :]

    def features(self, ids: Sequence[int]) -> torch.Tensor:
        """[T, 3 hidden]: the model's streams."""
        states = self.model(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
        return torch.cat([states[tap][0] for tap in self.taps], -1)

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        return self._linear("fc", features)

    def layer(self, streams: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """[T, hidden] of pairs of a stream and the token behind it → the same."""
        embedding = self.tensors.get("embed_tokens.weight", self.model.get_input_embeddings().weight)
        normed = self._norm("midlayer.hidden_norm", streams)
        x = torch.cat((self._norm("midlayer.input_layernorm", embedding[torch.tensor(tokens)]), normed), -1)
        residual = normed if self.config.get("norm_before_residual") else streams
        residual = residual + self._attention(x)
        y = self._norm("midlayer.post_attention_layernorm", residual)
        gate, up = (self._linear(f"midlayer.mlp.{name}_proj", y) for name in ("gate", "up"))
        return residual + self._linear("midlayer.mlp.down_proj", F.silu(gate) * up)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Over the tokens that can be guessed."""
        return self._linear("lm_head", self._norm("norm", hidden))

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        num_heads, num_kv = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        query, key, value = (
            self._linear(f"midlayer.self_attn.{name}_proj", x).view(len(x), heads, -1).transpose(0, 1)
            for name, heads in (("q", num_heads), ("k", num_kv), ("v", num_kv))
        )
        query, key = self._rotated(query), self._rotated(key)
        key, value = (part.repeat_interleave(num_heads // num_kv, 0) for part in (key, value))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._linear("midlayer.self_attn.o_proj", out.transpose(0, 1).reshape(len(x), -1))

    def _rotated(self, heads: torch.Tensor) -> torch.Tensor:
        """[heads, T, D], positions from 0 on."""
        half = heads.shape[-1] // 2
        angles = torch.arange(heads.shape[1])[:, None] * self.config["rope_theta"] ** (-torch.arange(half) / half)
        first, second = heads[..., :half], heads[..., half:]
        return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.tensors[f"{name}.weight"], self.config["rms_norm_eps"])
