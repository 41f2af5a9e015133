"""A decoder's step on a GPU: `transformer.py` over the same weights, with what stands between the matrix products in fused kernels.

Two ways through a layer, equal but for rounding:

    many tokens        hidden += delta, norm → qkv → rotate, store → attend → out = delta → hidden += delta, norm → gate, up → act → down
                       (up to 64: delta in parts, which the norm adds up; so it is from experts, one part from each that a token chose)
    at most 16 tokens  norm → qkv → rotate, store → attend → hidden += out → norm → gate, up → act → hidden += down
"""

from __future__ import annotations

from typing import cast

import torch
from torch.nn import functional as F

from ramet.errors import Unsupported
from ramet.runtime.attention.attention_backend import ForwardBatch
from ramet.runtime.attention.triton_backend import Angles, TritonAttention
from ramet.runtime.kernels.gpu.elementwise import add_rms_norm, gated_activation, norm_heads
from ramet.runtime.kernels.gpu.expert_products import Pairs, expert_inner, expert_outputs
from ramet.runtime.kernels.gpu.expert_routing import pairs_by_expert, route
from ramet.runtime.kernels.gpu.fixed_linear import fixed_linear
from ramet.runtime.kernels.gpu.gated_product import gains, gated_product, prepare
from ramet.runtime.kernels.gpu.rehearsal import is_rehearsing
from ramet.runtime.kernels.gpu.skinny_linear import fits, skinny_linear
from ramet.runtime.kernels.gpu.split_linear import split_linear, splits
from ramet.runtime.layers.experts import Experts
from ramet.runtime.layers.gated_mlp import GatedMLP
from ramet.runtime.layers.linear import Linear
from ramet.runtime.layers.rms_norm import RMSNorm
from ramet.runtime.layers.rotary import Rotary
from ramet.runtime.models.feature_taps import FeatureTaps
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
        by_kind = {(layer.attention.window, layer.attention.rotation, type(layer.mlp)): layer for layer in self._layers[:-1]}
        self._one_of_each = list(by_kind.values())
        self._has_experts = any(isinstance(layer.mlp, Experts) for layer in self._layers)
        if in_order:
            if self._has_experts:
                message = "enable_deterministic_inference: an expert's product is cut by how many tokens chose it; leave it out"
                raise Unsupported(message, param="enable_deterministic_inference")
            for linear in self._linears:
                check_alike(linear)
        else:
            prepare(model.embed.weight.device, model.embed.weight.dtype, self._activation)

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

    @property
    def taps(self) -> FeatureTaps | None:
        return self._model.taps

    def noise(self, num_tokens: int) -> torch.Tensor:
        """Inputs for `multiply`, [tokens, the widest product's]."""
        widest = max(len(linear.shape.columns) for linear in self._linears)
        weight = self._model.embed.weight
        return torch.randn(num_tokens, widest, device=weight.device).to(weight.dtype)

    def multiply(self, noise: torch.Tensor) -> None:
        """The products of one layer, of nothing in particular: what a number of tokens costs."""
        attention, mlp = self._layers[0].attention, self._layers[0].mlp
        for linear in (attention.qkv, attention.output):
            self._product(linear, _narrowed(noise, linear))
        if isinstance(mlp, Experts):
            self._routed(mlp, _narrowed(noise, mlp.router))
        else:
            self._inner(mlp.gate_up, _narrowed(noise, mlp.gate_up))
            self._product(mlp.down, _narrowed(noise, mlp.down))

    @property
    def _linears(self) -> tuple[Linear, ...]:
        return _linears_of(self._layers[0])

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
        self._tap(layer, hidden)
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
        return hidden, self._mlp(layer.mlp, x, layer.mlp_post_norm)

    def _mlp(self, mlp: GatedMLP | Experts, x: torch.Tensor, post_norm: RMSNorm | None) -> torch.Tensor:
        """What it adds to the residual, whole or in parts."""
        if isinstance(mlp, GatedMLP):
            return self._addend(mlp.down, self._inner(mlp.gate_up, x), post_norm)
        parts = self._routed(mlp, x)
        if mlp.shared is None and post_norm is None and mlp.ranks is None:
            return parts
        shared = None if mlp.shared is None else self._product(mlp.shared.down, self._inner(mlp.shared.gate_up, x))
        return _post(post_norm, mlp.combine(parts.sum(0), x, shared))

    def _inner(self, gate_up: Linear, x: torch.Tensor) -> torch.Tensor:
        """act(gate x) · up x."""
        plain = gate_up.quantized is None and gate_up.bias is None and not self._in_order
        if plain and gains(gate_up.weight, len(x), self._activation):
            return gated_product(x, gate_up.weight, self._activation)
        return gated_activation(self._product(gate_up, x), self._activation)

    def _routed(self, mlp: Experts, x: torch.Tensor) -> torch.Tensor:
        """[per_token, T, hidden], whose sum is what the experts make of x."""
        weights, chosen = route(self._product(mlp.router, x), mlp.spec.per_token, renormalise=mlp.spec.renormalise)
        pairs = Pairs(*pairs_by_expert(chosen, mlp.spec.count), weights)
        return expert_outputs(expert_inner(x, mlp.gate_up, pairs, self._activation), mlp.down, pairs)

    def _addend(self, linear: Linear, x: torch.Tensor, post_norm: RMSNorm | None) -> torch.Tensor:
        """What a product adds to the residual: [T, hidden], or in parts [P, T, hidden] for the next norm to add up."""
        plain = linear.quantized is None and linear.bias is None and post_norm is None and self._model.ranks is None
        if plain and splits(linear.weight, len(x)) and not self._in_order:
            return split_linear(x, linear.weight)
        return _post(post_norm, linear.combine(self._product(linear, x)))

    def _product(self, linear: Linear, x: torch.Tensor) -> torch.Tensor:
        return fixed_linear(x, linear.weight, linear.bias) if self._in_order else product(linear, x)

    def _is_skinny(self, layer: DecoderLayer, num_tokens: int) -> bool:
        """The same for all layers: what one leaves in `delta`, the next must add."""
        linears, dtype = _linears_of(layer), layer.attention_norm.weight.dtype
        alone = self._model.ranks is None and layer.attention_post_norm is None  # nothing happens to what is added to `hidden`
        alone = alone and not self._has_experts  # which add in parts
        return alone and not self._in_order and all(is_skinny(linear, num_tokens, dtype) for linear in linears)

    def _skinny_layer(self, layer: DecoderLayer, hidden: torch.Tensor, angles: list[Angles]) -> None:
        attention, mlp = layer.attention, cast(GatedMLP, layer.mlp)
        self._tap(layer, hidden)
        x = _norm(layer.attention_norm, hidden, None)
        attended = self._attend(attention, skinny_product(attention.qkv, x), angles)
        skinny_product(attention.output, attended, add_to=hidden)
        x = _norm(layer.mlp_norm, hidden, None)
        inner = gated_activation(skinny_product(mlp.gate_up, x), self._activation)
        skinny_product(mlp.down, inner, add_to=hidden)

    def _tap(self, layer: DecoderLayer, hidden: torch.Tensor) -> None:
        if self._model.taps is not None:
            self._model.taps.take(layer.attention.index, hidden)

    def _attend(self, attention: Attention, qkv: torch.Tensor, angles: list[Angles]) -> torch.Tensor:
        heads = qkv.view(qkv.shape[0], -1, attention.head_dim)
        query_key, value = heads[:, : attention.num_qk_heads], heads[:, attention.num_qk_heads :]
        if attention.head_norm is not None:
            norm_heads(query_key, attention.head_norm.weight, float(attention.head_norm.eps))
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


def _narrowed(noise: torch.Tensor, linear: Linear) -> torch.Tensor:
    """As wide as its inputs."""
    width = len(linear.shape.columns)
    return noise.view(-1)[: len(noise) * width].view(-1, width)


def _linears_of(layer: DecoderLayer) -> tuple[Linear, ...]:
    """The products that all tokens have in common."""
    attention, mlp = layer.attention, layer.mlp
    return (attention.qkv, attention.output, *((mlp.gate_up, mlp.down) if isinstance(mlp, GatedMLP) else (mlp.router,)))


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


def _post(norm: RMSNorm | None, delta: torch.Tensor) -> torch.Tensor:
    return delta if norm is None else _norm(norm, delta, None)


def _angles(rotary: Rotary, positions: torch.Tensor) -> Angles:
    angles = positions[:, None].float() * rotary.frequencies
    cos, sin = angles.cos(), angles.sin()
    factor = rotary.attention_factor
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)
