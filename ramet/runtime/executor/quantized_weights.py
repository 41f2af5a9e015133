"""A checkpoint as packed 4- to 8-bit matrices for the CPU step: GGUF's types keep their integers, those of AWQ and GPTQ their values;
everything else is rounded. No torch, unless the checkpoint is one that only torch reads.

Which models the step covers is decided here, by name: `why_not` says what a model has that the step does not do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ramet.errors import Unsupported
from ramet.runtime.executor.checkpoint_fit import check_fit
from ramet.runtime.executor.gguf_tensors import GgufTensors
from ramet.runtime.kernels import packed_weight
from ramet.runtime.kernels.cpu_kv_pool import KvType
from ramet.runtime.kernels.packed_weight import BLOCK, PANEL, STORED_BITS, Blocks, CpuContext, PackedWeight, StoredRows
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import LayerSpec, ModelSpec
from ramet.runtime.models.decoder_step import ACTIVATIONS, DecoderStep, StepLayer, StepShape, StepWeights
from ramet.runtime.rope_frequencies import rotation_tables

Floats = npt.NDArray[np.float32]
LARGEST_HIDDEN = 8192
EMBEDDING = "model.embed_tokens.weight"


class StepSource(Protocol):
    """A checkpoint on disk, in Hugging Face's tensor names. `adds_norm_offset`: its norm weights have the spec's offset in them already."""

    @property
    def adds_norm_offset(self) -> bool: ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor, without reading it."""

    def kind(self, name: str) -> str | None:
        """The GGUF type of a tensor; None: the checkpoint is of another format."""

    def stored(self, name: str) -> StoredRows | None:
        """A matrix as it lies in a GGUF file, rows in Hugging Face's order; None: the checkpoint is of another format."""

    def blocks(self, name: str, bits: int | None) -> Blocks | None:
        """A matrix as blocks of `bits` (None: any number) that hold its numbers exactly; None: it is to be rounded. Raises `Unsupported`
        for one that no block holds and that must not be rounded."""

    def numbers(self, name: str) -> Floats:
        """The whole tensor."""

    def drop_pages(self) -> None:
        """Let go of the memory of what was read so far."""


def why_not(spec: ModelSpec) -> str | None:
    """What of this model the CPU step does not do; None: it does all."""
    windows = {_window(layer, spec) for layer in spec.layers} - {None}
    rotary_dims = {layer.rope.rotary_dim for layer in spec.layers if layer.rope is not None}
    reasons = {
        "a mixture of experts": spec.experts is not None,
        f"activation {spec.activation}": spec.activation not in ACTIVATIONS,
        "sliding windows of several sizes": len(windows) > 1,
        "rotary embeddings of several sizes, or of none that 16 divides": len(rotary_dims) > 1 or any(n % 16 for n in rotary_dims),
        "soft-capped logits": spec.attention_softcap is not None or spec.logit_softcap is not None,
        f"head size {spec.head_dim}": spec.head_dim % 16 != 0,
        f"a hidden size over {LARGEST_HIDDEN}": spec.hidden_size > LARGEST_HIDDEN,
        "sizes that are no multiples of 32": any(
            n % BLOCK for n in (spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim)
        ),
        "a vocabulary that is no multiple of 8": spec.vocab_size % PANEL != 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _window(layer: LayerSpec, spec: ModelSpec) -> int | None:
    """None also where it is as wide as the context."""
    return layer.window if layer.window is not None and layer.window < spec.context_len else None


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    step: DecoderStep
    num_bytes: int
    num_parameters: int


def load_quantized(
    files: ModelFiles, spec: ModelSpec, *, bits: int | None, threads: int, kv_type: KvType, deterministic: bool = False
) -> QuantizedModel:
    """Pack the checkpoint. `bits`: 4 or 8 for every matrix; None keeps a GGUF file's own and rounds the rest to 8. Raises `Unsupported`
    for a model that `why_not` names, or where the kernels cannot be built."""
    if reason := why_not(spec):
        raise Unsupported(f"quantised CPU kernels do not cover {reason} ({spec.architecture}); use --quantization none")
    source, shapes = _open(files, spec, may_round=bits is not None), step_tensors(spec)
    check_fit(shapes, source.shapes(), files, spec)
    context = CpuContext(threads)
    weights = _Packer(source, context, spec, bits).weights()
    source.drop_pages()
    shape = StepShape(
        spec.hidden_size,
        spec.intermediate_size,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.vocab_size,
        next((layer.rope.rotary_dim for layer in spec.layers if layer.rope is not None), 0),
        spec.activation,
        spec.norm_eps,
        spec.attention_scale,
        spec.embedding_scale,
    )
    step = DecoderStep(context, shape, weights, kv_type, deterministic=deterministic)
    return QuantizedModel(step, weights.num_bytes, sum(prod(shape) for shape in shapes.values()))


def step_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the checkpoint of a model must have which the step covers."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries = spec.num_heads * spec.head_dim
    attention, gates = _stacked_rows(spec)
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}.weight": (rows, hidden) for name, rows in attention.items()}
    layer |= {"self_attn.o_proj.weight": (hidden, queries), "mlp.down_proj.weight": (hidden, inner)}
    layer |= {f"mlp.{name}.weight": (rows, hidden) for name, rows in gates.items()}
    if spec.qkv_bias:
        layer |= {f"self_attn.{name}.bias": (rows,) for name, rows in attention.items()}
    if spec.output_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if spec.mlp_bias:
        layer |= {f"mlp.{name}.bias": (rows,) for name, rows in gates.items()} | {"mlp.down_proj.bias": (hidden,)}
    if spec.qk_norm:
        layer |= {f"self_attn.{name}_norm.weight": (spec.head_dim,) for name in "qk"}
    layer |= {f"{name}_layernorm.weight": (hidden,) for name in _norm_names(spec)}
    outside: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not spec.tied_embeddings:
        outside["lm_head.weight"] = (spec.vocab_size, hidden)
    return outside | {f"model.layers.{i}.{name}": shape for i in range(spec.num_layers) for name, shape in layer.items()}


def _stacked_rows(spec: ModelSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Rows of the matrices that are multiplied together: of attention and of the MLP."""
    queries, keys, inner = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim, spec.intermediate_size
    if spec.fused_checkpoint:
        return {"qkv_proj": queries + 2 * keys}, {"gate_up_proj": 2 * inner}
    return {"q_proj": queries, "k_proj": keys, "v_proj": keys}, {"gate_proj": inner, "up_proj": inner}


def _norm_names(spec: ModelSpec) -> tuple[str, ...]:
    """Before attention and before the MLP; then those of what either adds, where there are such."""
    if not spec.sandwich_norms:
        return "input", "post_attention"
    return "input", "pre_feedforward", "post_attention", "post_feedforward"


def _open(files: ModelFiles, spec: ModelSpec, *, may_round: bool) -> StepSource:
    if files.format == "gguf":
        return GgufTensors(files, spec)
    from ramet.runtime.executor.torch_step_source import TorchStepSource  # torch, which a GGUF file does without

    return TorchStepSource(files, spec, may_round=may_round)


class _Packer:
    def __init__(self, source: StepSource, context: CpuContext, spec: ModelSpec, bits: int | None) -> None:
        self.source, self.context, self.spec, self.bits = source, context, spec, bits
        ropes = {layer.rope for layer in spec.layers if layer.rope is not None}
        self.rotations = {rope: rotation_tables(rope, spec.context_len) for rope in ropes}

    def weights(self) -> StepWeights:
        embedding = self.stored(EMBEDDING) or StoredRows.of(self.blocks(EMBEDDING, bits=8))
        with ThreadPoolExecutor(2) as threads:  # one unpacks a layer's blocks while the other packs its own
            layers = tuple(threads.map(self.layer, range(self.spec.num_layers)))
        head = self.context.pack_stored([embedding]) if self.spec.tied_embeddings else self.matrix(["lm_head"])
        return StepWeights(layers, head, self.norm("model.norm"), embedding)

    def layer(self, index: int) -> StepLayer:
        spec, prefix, own = self.spec, f"model.layers.{index}.", self.spec.layers[index]
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        qkv, gates = _stacked_rows(spec)
        norms = [self.norm(f"{prefix}{name}_layernorm") for name in _norm_names(spec)]
        added: Sequence[Floats | None] = norms[2:] or (None, None)
        return StepLayer(
            qkv=self.stack([attention + name for name in qkv], has_bias=spec.qkv_bias),
            out=self.matrix([f"{attention}o_proj"], has_bias=spec.output_bias),
            gate_up=self.matrix([mlp + name for name in gates], has_bias=spec.mlp_bias),
            down=self.matrix([f"{mlp}down_proj"], has_bias=spec.mlp_bias),
            input_norm=norms[0],
            post_norm=norms[1],
            rotation=None if own.rope is None else self.rotations[own.rope],
            window=_window(own, spec),
            query_norm=self.norm(f"{attention}q_norm") if spec.qk_norm else None,
            key_norm=self.norm(f"{attention}k_norm") if spec.qk_norm else None,
            added_by_attention_norm=added[0],
            added_by_mlp_norm=added[1],
        )

    def norm(self, name: str) -> Floats:
        weight = self.source.numbers(f"{name}.weight")
        return weight if self.source.adds_norm_offset else weight + np.float32(self.spec.norm_offset)

    def stack(self, names: list[str], *, has_bias: bool) -> tuple[PackedWeight, ...]:
        """Matrices under each other; neighbours of the same bits are one."""
        by_bits = groupby(names, lambda name: self.bits_of(f"{name}.weight"))
        return tuple(self.matrix(list(alike), has_bias=has_bias) for _, alike in by_bits)

    def bits_of(self, name: str) -> int | None:
        """Of a matrix whose integers are kept, being of the wanted number of bits or none being wanted; None: it is rounded, or comes in
        blocks."""
        own = STORED_BITS.get(self.source.kind(name) or "")
        return own if self.bits in (None, own) else None

    def matrix(self, parts: list[str], *, has_bias: bool = False) -> PackedWeight:
        """Matrices under each other as one."""
        bias = np.concatenate([self.source.numbers(f"{name}.bias") for name in parts]) if has_bias else None
        names = [f"{name}.weight" for name in parts]
        stored = [self.stored(name) for name in names]
        rows = [part for part in stored if part is not None]
        if len(rows) == len(stored) and len({part.bits for part in rows}) == 1:
            return self.context.pack_stored(rows, bias)
        blocks = [self.blocks(name) for name in names]
        if len({part.bits for part in blocks}) > 1:
            blocks = [self.blocks(name, bits=8) for name in names]
        return self.context.pack(Blocks.concatenate(blocks), bias)

    def blocks(self, name: str, *, bits: int | None = None) -> Blocks:
        """The tensor in blocks of `bits`, by default of the wanted or the file's own number."""
        bits = bits or self.bits
        exact = self.source.blocks(name, bits)
        return packed_weight.quantize(self.source.numbers(name), bits or 8) if exact is None else exact

    def stored(self, name: str) -> StoredRows | None:
        """The tensor as a GGUF file holds it, where its integers are kept."""
        return None if self.bits_of(name) is None else self.source.stored(name)
