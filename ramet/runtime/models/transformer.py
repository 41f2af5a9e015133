"""One decoder for every family; the spec says which of its options a model uses.

h = embed(tokens)
for each layer:
    h = h + attention(norm(h))        # gemma: norm(attention(norm(h)))
    h = h + mlp(norm(h))              # likewise; one MLP, or those of many that a router chooses
logits = embed.T · norm(h)            # only where wanted
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.attention.attention_backend import AttentionBackend, ForwardBatch
from ramet.runtime.layers.embedding import Embedding
from ramet.runtime.layers.experts import Experts
from ramet.runtime.layers.gated_mlp import GatedMLP
from ramet.runtime.layers.linear import Linear, LinearPart, LinearShape, Storage, storage_under
from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.layers.rms_norm import HeadNorm, RMSNorm
from ramet.runtime.layers.rotary import Rotary, Rotation, rotate
from ramet.runtime.layers.weight_slot import Slot
from ramet.runtime.model_shard import ModelShard, divide, shifted, times
from ramet.runtime.model_spec import ModelSpec, RopeSpec
from ramet.runtime.models.feature_taps import FeatureTaps


class Transformer(nn.Module):
    """The whole model, or with `ranks` this rank's part of it (`model_shard`). Parameters are empty until a loader fills `slots()`."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ranks: RankGroup | None = None,
        storage: Storage | None = None,
    ) -> None:
        """`storage`: which matrices of the layers are kept in fewer bits."""
        super().__init__()
        self.spec, self.ranks = spec, ranks
        self.shard = shard = divide(spec, 0, 1) if ranks is None else divide(spec, ranks.rank, ranks.size)
        self.embed = Embedding(
            spec.vocab_size,
            spec.hidden_size,
            scale=spec.embedding_scale,
            dtype=dtype,
            device=device,
            held=shard.vocab,
            ranks=ranks,
        )
        ropes = tuple(dict.fromkeys(layer.rope for layer in spec.layers if layer.rope is not None))
        self.rotaries = nn.ModuleList(Rotary(rope, dtype=dtype, device=device) for rope in ropes)
        self.layers = nn.ModuleList(
            DecoderLayer(shard, i, ropes, dtype=dtype, device=device, ranks=ranks, storage=storage_under(storage, f"model.layers.{i}."))
            for i in range(spec.num_layers)
        )
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps, offset=spec.norm_offset, dtype=dtype, device=device)
        self.taps: FeatureTaps | None = None  # for whom the streams between the layers are of interest
        head = LinearShape(spec.hidden_size, (LinearPart("lm_head", spec.vocab_size, (shard.vocab,)),), range(spec.hidden_size))
        self.head = None if spec.tied_embeddings else Linear(head, dtype=dtype, device=device)

    def forward(self, batch: ForwardBatch, attention: AttentionBackend) -> torch.Tensor:
        """Logits [S, vocab] float32 of the tokens at `batch.logit_indices`. `attention` has been prepared for this batch."""
        hidden = self.embed(batch.token_ids)
        rotations = [rotary(batch.positions) for rotary in self.rotaries]
        for index, layer in enumerate(self.layers):
            if self.taps is not None:
                self.taps.take(index, hidden)
            hidden = layer(hidden, rotations, attention)
        return self.logits(hidden.index_select(0, batch.logit_indices))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(hidden)
        head = self.embed if self.head is None else self.head
        logits = F.linear(hidden, head.weight).float()
        cap = self.spec.logit_softcap
        return self.whole_logits(logits if cap is None else logits.div_(cap).tanh_().mul_(cap))

    def whole_logits(self, logits: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[S, vocab] on every rank, in `out` where it is given, from each rank's share of the vocabulary [S, vocab / N]."""
        if self.ranks is None:
            return logits
        num_rows, share = logits.shape
        whole = logits.new_empty(num_rows, self.spec.vocab_size) if out is None else out
        whole.view(num_rows, self.ranks.size, share).copy_(self.ranks.all_gather(logits).transpose(0, 1))
        return whole

    def slots(self) -> dict[str, Slot]:
        """Every tensor that a checkpoint must bring, by its name there."""
        found: dict[str, Slot] = {
            "model.embed_tokens.weight": self.embed.slots()["weight"],
            "model.norm.weight": self.norm.slots()["weight"],
        }
        if self.head is not None:
            found |= self.head.slots()
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            found |= {f"model.layers.{index}.{name}": slot for name, slot in layer.slots().items()}
        return found


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream; sandwich norms put another one behind each."""

    def __init__(
        self,
        shard: ModelShard,
        index: int,
        ropes: tuple[RopeSpec, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        ranks: RankGroup | None = None,
        storage: Storage | None = None,
    ) -> None:
        super().__init__()
        spec = shard.spec

        def norm() -> RMSNorm:
            return RMSNorm(spec.hidden_size, spec.norm_eps, offset=spec.norm_offset, dtype=dtype, device=device)

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention_post_norm = norm() if spec.sandwich_norms else None
        self.mlp_post_norm = norm() if spec.sandwich_norms else None
        in_attention, in_mlp = storage_under(storage, "self_attn."), storage_under(storage, "mlp.")
        self.mlp: Experts | GatedMLP
        self.attention = Attention(shard, index, ropes, dtype=dtype, device=device, ranks=ranks, storage=in_attention)
        if spec.layers[index].sparse:
            self.mlp = Experts(shard, dtype=dtype, device=device, ranks=ranks)
        else:
            self.mlp = GatedMLP(shard, dtype=dtype, device=device, ranks=ranks, storage=in_mlp)

    def forward(self, hidden: torch.Tensor, rotations: list[Rotation], backend: AttentionBackend) -> torch.Tensor:
        """[T, hidden] → the same tensor, updated in place."""
        out = self.attention(self.attention_norm(hidden), rotations, backend)
        hidden += out if self.attention_post_norm is None else self.attention_post_norm(out)
        out = self.mlp(self.mlp_norm(hidden))
        hidden += out if self.mlp_post_norm is None else self.mlp_post_norm(out)
        return hidden

    def slots(self) -> dict[str, Slot]:
        found: dict[str, Slot] = {f"self_attn.{name}": slot for name, slot in self.attention.slots().items()}
        found |= {f"mlp.{name}": slot for name, slot in self.mlp.slots().items()}
        norms = {"input_layernorm": self.attention_norm, "post_attention_layernorm": self.mlp_norm}
        if self.attention_post_norm is not None and self.mlp_post_norm is not None:
            norms = {
                "input_layernorm": self.attention_norm,
                "post_attention_layernorm": self.attention_post_norm,
                "pre_feedforward_layernorm": self.mlp_norm,
                "post_feedforward_layernorm": self.mlp_post_norm,
            }
        return found | {f"{name}.weight": norm.slots()["weight"] for name, norm in norms.items()}


class Attention(nn.Module):
    """Grouped-query attention: one matrix for q, k and v; queries and keys are normed and rotated together. A rank has its share of the
    heads."""

    def __init__(
        self,
        shard: ModelShard,
        index: int,
        ropes: tuple[RopeSpec, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        ranks: RankGroup | None = None,
        storage: Storage | None = None,
        in_features: int | None = None,
    ) -> None:
        """`in_features`: how wide its input is, where that is not the hidden size."""
        super().__init__()
        spec = shard.local
        width = in_features or spec.hidden_size
        self.index, self.window, self.softcap = index, spec.layers[index].window, spec.attention_softcap
        self.scale, self.head_dim = spec.attention_scale, spec.head_dim
        self.num_heads, self.num_qk_heads = spec.num_heads, spec.num_heads + spec.num_kv_heads
        rope = spec.layers[index].rope
        self.rotation = None if rope is None else ropes.index(rope)
        qkv = LinearShape(width, _qkv(shard), range(width), spec.qkv_bias)
        self.qkv = Linear(qkv, dtype=dtype, device=device, storage=storage)
        inputs = shard.spec.num_heads * spec.head_dim
        heads = times(shard.heads, spec.head_dim)
        out = LinearShape(inputs, (LinearPart.whole("o_proj", spec.hidden_size),), heads, spec.output_bias)
        self.output = Linear(out, dtype=dtype, device=device, ranks=ranks, storage=storage)
        self.head_norm = (
            HeadNorm(spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.norm_eps, offset=spec.norm_offset, dtype=dtype, device=device)
            if spec.qk_norm
            else None
        )

    def forward(self, x: torch.Tensor, rotations: list[Rotation], backend: AttentionBackend) -> torch.Tensor:
        """[T, hidden] → [T, hidden]."""
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        query_key, value = heads[:, : self.num_qk_heads], heads[:, self.num_qk_heads :]
        if self.head_norm is not None:
            query_key = self.head_norm(query_key)
        if self.rotation is not None:
            query_key = rotate(query_key, rotations[self.rotation])
        query, key = query_key[:, : self.num_heads], query_key[:, self.num_heads :]
        attended = backend.forward(query, key, value, self.index, self.scale, self.window, self.softcap)
        out: torch.Tensor = self.output(attended.reshape(x.shape[0], -1))
        return out

    def slots(self) -> dict[str, Slot]:
        norms = {} if self.head_norm is None else self.head_norm.slots()
        return {**self.qkv.slots(), **self.output.slots(), **norms}


def _qkv(shard: ModelShard) -> tuple[LinearPart, ...]:
    spec = shard.spec
    heads, kv_heads = times(shard.heads, spec.head_dim), times(shard.kv_heads, spec.head_dim)
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    if spec.fused_checkpoint:
        return (LinearPart("qkv_proj", query + 2 * key, (heads, shifted(kv_heads, query), shifted(kv_heads, query + key))),)
    return LinearPart("q_proj", query, (heads,)), LinearPart("k_proj", key, (kv_heads,)), LinearPart("v_proj", key, (kv_heads,))
