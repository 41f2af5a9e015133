"""The EAGLE-3 head (arXiv 2503.01840): one decoder layer that guesses the token behind the next from what the model made of the last.

h = fuse(features)                          # of the token before, from three places of the model; in a chain of guesses h itself
x = [norm(embed(token)), norm(h)]
h = h + attention(x);  h = h + mlp(norm(h))
logits = head · norm(h)                     # over those tokens of the vocabulary that it can guess

The pair of a token and the feature before it stands at the position before the token's: the first token has none.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ramet.runtime.attention.attention_backend import AttentionBackend, ForwardBatch
from ramet.runtime.layers.embedding import Embedding
from ramet.runtime.layers.gated_mlp import GatedMLP
from ramet.runtime.layers.linear import Linear, LinearPart, LinearShape
from ramet.runtime.layers.rms_norm import RMSNorm
from ramet.runtime.layers.rotary import Rotary, rotate
from ramet.runtime.layers.weight_slot import Slot, WeightSlot
from ramet.runtime.model_shard import divide
from ramet.runtime.models.eagle_config import HeadSpec
from ramet.runtime.models.transformer import Attention


class EagleHead(nn.Module):
    """Parameters are empty until a loader fills `slots()`."""

    def __init__(self, spec: HeadSpec, embed: Embedding | None, *, maps_tokens: bool, dtype: torch.dtype, device: torch.device) -> None:
        """`embed`: the target's, where the checkpoint has none of its own. `maps_tokens`: it says which tokens it can guess; else those
        are the first."""
        super().__init__()
        self.spec, decoder = spec, spec.decoder
        size, rope = decoder.hidden_size, decoder.layers[0].rope
        assert rope is not None, "every Llama layer rotates"

        def norm() -> RMSNorm:
            return RMSNorm(size, decoder.norm_eps, dtype=dtype, device=device)

        def linear(name: str, rows: int, columns: int) -> Linear:
            return Linear(LinearShape(columns, (LinearPart.whole(name, rows),), range(columns)), dtype=dtype, device=device)

        shard = divide(decoder, 0, 1)
        self.own_embedding: Embedding | None = None
        if embed is None:
            embed = self.own_embedding = Embedding(decoder.vocab_size, size, scale=1.0, dtype=dtype, device=device, held=shard.vocab)
        self._embed = embed.forward  # a function: the target's weights are not this module's
        self.fuse = linear("fc", size, len(spec.taps) * spec.target_size)
        self.embed_norm, self.hidden_norm, self.mlp_norm, self.norm = norm(), norm(), norm(), norm()
        self.rotary = Rotary(rope, dtype=dtype, device=device)
        self.attention = Attention(shard, 0, (rope,), in_features=2 * size, dtype=dtype, device=device)
        self.mlp = GatedMLP(shard, dtype=dtype, device=device)
        self.head = linear("lm_head", spec.num_tokens, size)
        self.offsets = torch.zeros(spec.num_tokens, dtype=torch.int64, device=device)  # token - number among those that it can guess
        self._maps_tokens = maps_tokens

    def forward(self, hidden: torch.Tensor, batch: ForwardBatch, attention: AttentionBackend) -> torch.Tensor:
        """[T, hidden] of the pairs → the same, behind the layer. `attention` has been prepared for this batch."""
        normed = self.hidden_norm(hidden)
        residual = normed if self.spec.norm_before_residual else hidden
        x = torch.cat((self.embed_norm(self._embed(batch.token_ids)), normed), -1)
        residual = residual + self.attention(x, [self.rotary(batch.positions)], attention)
        out: torch.Tensor = residual + self.mlp(self.mlp_norm(residual))
        return out

    def keys_values(self, hidden: torch.Tensor, token_ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `forward` leaves in the pool of the same pairs: [T, KH, D] each."""
        x = torch.cat((self.embed_norm(self._embed(token_ids)), self.hidden_norm(hidden)), -1)
        attention, qkv = self.attention, self.attention.qkv
        first = attention.num_heads * attention.head_dim
        bias = None if qkv.bias is None else qkv.bias[first:]
        key, value = F.linear(x, qkv.weight[first:], bias).view(len(x), -1, attention.head_dim).chunk(2, 1)
        return rotate(key, self.rotary(positions)), value

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[S, vocab] float32, in `out` where it is given; -inf for tokens that it cannot guess."""
        found: torch.Tensor = self.head(self.norm(hidden)).float()
        if out is None:
            out = found.new_empty(len(found), self.spec.decoder.vocab_size)
        if not self._maps_tokens and self.spec.num_tokens == self.spec.decoder.vocab_size:
            return out.copy_(found)
        return out.fill_(float("-inf")).index_copy_(1, self.tokens, found)

    @property
    def tokens(self) -> torch.Tensor:
        """[num_tokens] int64: those that it can guess, in order."""
        return self.offsets + torch.arange(self.spec.num_tokens, device=self.offsets.device)

    def slots(self) -> dict[str, Slot]:
        """Every tensor that a checkpoint must bring, in the words of the first ones."""
        found: dict[str, Slot] = {**self.fuse.slots(), **self.head.slots(), "norm.weight": self.norm.slots()["weight"]}
        if self.own_embedding is not None:
            found["embed_tokens.weight"] = self.own_embedding.slots()["weight"]
        if self._maps_tokens:
            found["d2t"] = WeightSlot(self.offsets, (self.spec.num_tokens,))
        found |= {f"midlayer.self_attn.{name}": slot for name, slot in self.attention.slots().items()}
        found |= {f"midlayer.mlp.{name}": slot for name, slot in self.mlp.slots().items()}
        norms = {"input_layernorm": self.embed_norm, "hidden_norm": self.hidden_norm, "post_attention_layernorm": self.mlp_norm}
        return found | {f"midlayer.{name}.weight": norm.slots()["weight"] for name, norm in norms.items()}
