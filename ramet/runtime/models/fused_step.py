"""A dense decoder's step on a GPU: `transformer.py` over the same weights, with what stands between the matrix products in fused kernels.

Two ways through a layer, equal but for rounding:

    many tokens        hidden += delta, norm → qkv → rotate, store → attend → out = delta → hidden += delta, norm → gate, up → act → down
                       (up to 64: delta in parts, which the norm adds up)
    at most 16 tokens  norm → qkv → rotate, store → attend → hidden += out → norm → gate, up → act → hidden += down
"""

from __future__ import annotations

from typing import cast

import torch
from torch.nn import functional as F

from ramet.runtime.attention.attention_backend import ForwardBatch
from ramet.runtime.attention.triton_backend import Angles, TritonAttention
from ramet.runtime.kernels.gpu.elementwise import add_rms_norm, gated_activation
from ramet.runtime.kernels.gpu.fixed_linear import fixed_linear
from ramet.runtime.kernels.gpu.rehearsal import is_rehearsing
from ramet.runtime.kernels.gpu.skinny_linear import fits, skinny_linear
from ramet.runtime.kernels.gpu.split_linear import split_linear, splits
from ramet.runtime.layers.linear import Linear
from ramet.runtime.layers.rms_norm import HeadNorm, RMSNorm
from ramet.runtime.layers.rotary import Rotary
from ramet.runtime.models.matrix_products import check_alike, is_skinny, product, skinny_product
from ramet.runtime.models.transformer import Attention, DecoderLayer, Transformer

MANY_TOKENS = 1024
"""From here on the product adds to `hidden` itself: one pass over memory less, which for fewer tokens is nothing."""


class FusedStep:
    """The forward pass over an attention backend that has its plan. Every family that `Transformer` knows."""

    def __init__(self, model: Transformer, attention: TritonAttention, *, in_order: bool = False) -> None:
        """`in_order`: a token's numbers are the same bits whatever is computed beside it; so is `attention` then. Raises `Unsupported`
        where that cannot be had."""
        self._model, self._attention, self._in_order = model, attention, in_order
        self._activation = model.spec.activation
        self._layers = [cast(DecoderLayer, layer) for layer in model.layers]
        by_kind = {(layer.attention.window, layer.attention.rotation): layer for layer in self._layers[:-1]}
        self._one_of_each = list(by_kind.values())
        if in_order:
            for linear in self._linears:
                check_alike(linear)

    def forward(self, batch: ForwardBatch, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [S, vocab] float32 of `batch.logit_indices`, in `out` where it is given."""
        hidden = self._model.embed(batch.token_ids)
        angles = [_angles(cast(Rotary, rotary), batch.positions) for rotary in self._model.rotaries]
        delta: torch.Tensor | None = None
        for layer in self._one_of_each if is_rehearsing() else self._layers[:-1]:
            if self._is_skinny(layer, len(hidden)):
                self._skinny_layer(layer, hidden, angles)
            else:
                hidden, delta = self._layer(layer, hidden, delta, angles)
        return self._last(hidden, delta, angles, batch.logit_indices, out)

    def noise(self, num_tokens: int) -> torch.Tensor:
        """Inputs for `multiply`, [tokens, the widest product's]."""
        widest = max(len(linear.shape.columns) for linear in self._linears)
        weight = self._model.embed.weight
        return torch.randn(num_tokens, widest, device=weight.device).to(weight.dtype)

    def multiply(self, noise: torch.Tensor) -> None:
        """The products of one layer, of nothing in particular: what a number of tokens costs."""
        for linear in self._linears:
            width = len(linear.shape.columns)
            self._product(linear, noise.view(-1)[: len(noise) * width].view(-1, width))

    @property
    def _linears(self) -> tuple[Linear, ...]:
        layer = self._layers[0]
        return layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down

    def _last(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, angles: list[Angles], wanted: torch.Tensor, out: torch.Tensor | None
    ) -> torch.Tensor:
        """The last layer, of which all tokens leave keys and values, but only those whose logits are wanted go on from its attention."""
        layer = self._layers[-1]
        if self._is_skinny(layer, len(hidden)):
            self._skinny_layer(layer, hidden, angles)
            return self._logits(hidden.index_select(0, wanted), None, out)
        if len(wanted) < len(hidden):
            return self._logits(*self._layer(layer, hidden, delta, angles, wanted), out)
        hidden, delta = self._layer(layer, hidden, delta, angles)
        return self._logits(hidden.index_select(0, wanted), delta.index_select(-2, wanted), out)

    def _layer(
        self,
        layer: DecoderLayer,
        hidden: torch.Tensor,
        delta: torch.Tensor | None,
        angles: list[Angles],
        wanted: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Updates `hidden` in place, and returns with it what the MLP adds, for the next norm to add. `wanted`: only these tokens go on
        behind the attention."""
        x = _norm(layer.attention_norm, hidden, delta)
        attended = self._attend(layer.attention, self._product(layer.attention.qkv, x), angles)
        if wanted is not None:
            hidden, attended = hidden.index_select(0, wanted), attended.index_select(0, wanted)
        output = layer.attention.output
        plain = output.quantized is None and output.bias is None and layer.attention_post_norm is None
        if len(hidden) >= MANY_TOKENS and plain and self._model.ranks is None and not self._in_order:
            torch.addmm(hidden, attended, output.weight.t(), out=hidden)
            x = _norm(layer.mlp_norm, hidden, None)
        else:
            x = _norm(layer.mlp_norm, hidden, self._addend(output, attended, layer.attention_post_norm))
        inner = gated_activation(self._product(layer.mlp.gate_up, x), self._activation)
        return hidden, self._addend(layer.mlp.down, inner, layer.mlp_post_norm)

    def _addend(self, linear: Linear, x: torch.Tensor, post_norm: RMSNorm | None) -> torch.Tensor:
        """What a product adds to the residual: [T, hidden], or in parts [P, T, hidden] for the next norm to add up."""
        plain = linear.quantized is None and linear.bias is None and post_norm is None and self._model.ranks is None
        if plain and splits(linear.weight, len(x)) and not self._in_order:
            return split_linear(x, linear.weight)
        return _post(post_norm, linear.combine(self._product(linear, x)))

    def _product(self, linear: Linear, x: torch.Tensor) -> torch.Tensor:
        return fixed_linear(x, linear.weight, linear.bias) if self._in_order else product(linear, x)

    def _is_skinny(self, layer: DecoderLayer, num_tokens: int) -> bool:
        linears = (layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down)
        alone = self._model.ranks is None and layer.attention_post_norm is None  # nothing happens to what is added to `hidden`
        return alone and not self._in_order and all(is_skinny(linear, num_tokens, layer.attention_norm.weight.dtype) for linear in linears)

    def _skinny_layer(self, layer: DecoderLayer, hidden: torch.Tensor, angles: list[Angles]) -> None:
        attention, mlp = layer.attention, layer.mlp
        x = _norm(layer.attention_norm, hidden, None)
        attended = self._attend(attention, skinny_product(attention.qkv, x), angles)
        skinny_product(attention.output, attended, add_to=hidden)
        x = _norm(layer.mlp_norm, hidden, None)
        inner = gated_activation(skinny_product(mlp.gate_up, x), self._activation)
        skinny_product(mlp.down, inner, add_to=hidden)

    def _attend(self, attention: Attention, qkv: torch.Tensor, angles: list[Angles]) -> torch.Tensor:
        heads = qkv.view(qkv.shape[0], -1, attention.head_dim)
        query_key, value = heads[:, : attention.num_qk_heads], heads[:, attention.num_qk_heads :]
        if attention.head_norm is not None:
            query_key = _head_norm(attention.head_norm, query_key) if self._in_order else attention.head_norm(query_key)
        rotation = None if attention.rotation is None else angles[attention.rotation]
        query = self._attention.rotate_and_store(query_key, value, rotation, attention.index)
        out = self._attention.attend(query, attention.index, attention.scale, attention.window, attention.softcap)
        return out.view(qkv.shape[0], -1)

    def _logits(self, hidden: torch.Tensor, delta: torch.Tensor | None, out: torch.Tensor | None) -> torch.Tensor:
        model = self._model
        weight = model.embed.weight if model.head is None else model.head.weight
        x, out_here = _norm(model.norm, hidden, delta), out if model.ranks is None else None
        logits = fixed_linear(x, weight, out=out_here, dtype=torch.float32) if self._in_order else _float_product(x, weight, out_here)
        cap = model.spec.logit_softcap
        return model.whole_logits(logits if cap is None else logits.div_(cap).tanh_().mul_(cap), out)


def _float_product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """x Wᵀ, left in the float32 in which it was summed."""
    if x.shape[0] and fits(weight, x.shape[0]):
        return skinny_linear(x, weight, out=out, dtype=torch.float32)
    if x.is_cuda and x.dtype != torch.float32:
        if out is None:
            return torch.mm(x, weight.t(), out_dtype=torch.float32)
        return torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)
    logits = F.linear(x, weight).float()
    return logits if out is None else out.copy_(logits)


def _norm(norm: RMSNorm, hidden: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
    return add_rms_norm(hidden, delta, norm.weight, float(norm.eps))


def _head_norm(norm: HeadNorm, heads: torch.Tensor) -> torch.Tensor:
    """`HeadNorm` by the kernel that norms every line by itself."""
    parts = ((heads[:, : norm.num_heads], norm.weight[0]), (heads[:, norm.num_heads :], norm.weight[-1]))
    normed = [add_rms_norm(part.reshape(-1, norm.head_dim), None, weight, float(norm.eps)).view(part.shape) for part, weight in parts]
    return torch.cat(normed, 1)


def _post(norm: RMSNorm | None, delta: torch.Tensor) -> torch.Tensor:
    return delta if norm is None else _norm(norm, delta, None)


def _angles(rotary: Rotary, positions: torch.Tensor) -> Angles:
    angles = positions[:, None].float() * rotary.frequencies
    cos, sin = angles.cos(), angles.sin()
    factor = rotary.attention_factor
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)
