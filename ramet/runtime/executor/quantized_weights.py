"""A checkpoint as packed 4- to 8-bit matrices for the CPU step: GGUF's types keep their integers, those of AWQ and GPTQ their values;
everything else is rounded. No torch, unless the checkpoint is one that only torch reads.

Which models the step covers is decided here, by name: `why_not` says what a model has that the step does not do.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.decoder_step import DecoderStep, StepLayer, StepShape, StepWeights
from ramet.runtime.rope_frequencies import rotation_tables

Floats = npt.NDArray[np.float32]
LARGEST_HIDDEN = 8192
EMBEDDING = "model.embed_tokens.weight"


class StepSource(Protocol):
    """A checkpoint on disk, in Hugging Face's tensor names."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor, without reading it."""

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
    ropes = {layer.rope for layer in spec.layers}
    rope = next(iter(ropes))
    reasons = {
        f"activation {spec.activation}": spec.activation != "silu",
        "a sliding window": any(layer.window is not None and layer.window < spec.context_len for layer in spec.layers),
        "layers that differ in their rotary embedding": len(ropes) > 1 or rope is None,
        "a partial rotary embedding": rope is not None and rope.rotary_dim != spec.head_dim,
        "soft-capped logits": spec.attention_softcap is not None or spec.logit_softcap is not None,
        "norms behind attention and MLP": spec.sandwich_norms or spec.norm_offset != 0,
        "a scaled embedding": spec.embedding_scale != 1.0,
        "biases in the MLP or the attention's output": spec.output_bias or spec.mlp_bias,
        f"head size {spec.head_dim}": spec.head_dim % 16 != 0,
        f"a hidden size over {LARGEST_HIDDEN}": spec.hidden_size > LARGEST_HIDDEN,
        "sizes that are no multiples of 32": any(
            n % BLOCK for n in (spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim)
        ),
        "a vocabulary that is no multiple of 8": spec.vocab_size % PANEL != 0,
        "a fused checkpoint": spec.fused_checkpoint,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


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
    weights = _Packer(source, context, bits).weights(spec)
    source.drop_pages()
    shape = StepShape(
        spec.hidden_size,
        spec.intermediate_size,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.vocab_size,
        spec.norm_eps,
        spec.attention_scale,
    )
    step = DecoderStep(context, shape, weights, kv_type, deterministic=deterministic)
    return QuantizedModel(step, weights.num_bytes, sum(prod(shape) for shape in shapes.values()))


def step_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the checkpoint of a model must have which the step covers."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    attention = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}.weight": (rows, hidden) for name, rows in attention.items()}
    if spec.qkv_bias:
        layer |= {f"self_attn.{name}.bias": (rows,) for name, rows in attention.items()}
    if spec.qk_norm:
        layer |= {f"self_attn.{name}_norm.weight": (spec.head_dim,) for name in "qk"}
    layer |= {"self_attn.o_proj.weight": (hidden, queries), "mlp.down_proj.weight": (hidden, inner)}
    layer |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    layer |= {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    outside: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not spec.tied_embeddings:
        outside["lm_head.weight"] = (spec.vocab_size, hidden)
    return outside | {f"model.layers.{i}.{name}": shape for i in range(spec.num_layers) for name, shape in layer.items()}


def _open(files: ModelFiles, spec: ModelSpec, *, may_round: bool) -> StepSource:
    if files.format == "gguf":
        return GgufTensors(files, spec)
    from ramet.runtime.executor.torch_step_source import TorchStepSource  # torch, which a GGUF file does without

    return TorchStepSource(files, spec, may_round=may_round)


class _Packer:
    def __init__(self, source: StepSource, context: CpuContext, bits: int | None) -> None:
        self.source, self.context, self.bits = source, context, bits

    def weights(self, spec: ModelSpec) -> StepWeights:
        embedding = self.stored(EMBEDDING) or StoredRows.of(self.blocks(EMBEDDING, bits=8))
        with ThreadPoolExecutor(2) as threads:  # one unpacks a layer's blocks while the other packs its own
            layers = tuple(threads.map(lambda i: self.layer(f"model.layers.{i}.", spec), range(spec.num_layers)))
        head = self.context.pack_stored([embedding]) if spec.tied_embeddings else self.matrix(["lm_head.weight"])
        cosine, sine = rotation_tables(spec)
        return StepWeights(layers, head, self.source.numbers("model.norm.weight"), embedding, cosine, sine)

    def layer(self, prefix: str, spec: ModelSpec) -> StepLayer:
        attention, mlp, numbers = f"{prefix}self_attn.", f"{prefix}mlp.", self.source.numbers
        return StepLayer(
            qkv=self.stack([f"{attention}{name}_proj" for name in "qkv"], has_bias=spec.qkv_bias),
            out=self.matrix([f"{attention}o_proj.weight"]),
            gate_up=self.matrix([f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"]),
            down=self.matrix([f"{mlp}down_proj.weight"]),
            input_norm=numbers(f"{prefix}input_layernorm.weight"),
            post_norm=numbers(f"{prefix}post_attention_layernorm.weight"),
            query_norm=numbers(f"{attention}q_norm.weight") if spec.qk_norm else None,
            key_norm=numbers(f"{attention}k_norm.weight") if spec.qk_norm else None,
        )

    def stack(self, names: list[str], *, has_bias: bool) -> tuple[PackedWeight, ...]:
        """Matrices under each other; neighbours of the same bits are one."""
        by_bits = groupby(names, lambda name: self.bits_of(f"{name}.weight"))
        return tuple(self.stacked(list(alike), has_bias) for _, alike in by_bits)

    def stacked(self, names: list[str], has_bias: bool) -> PackedWeight:
        bias = np.concatenate([self.source.numbers(f"{name}.bias") for name in names]) if has_bias else None
        return self.matrix([f"{name}.weight" for name in names], bias)

    def bits_of(self, name: str) -> int | None:
        """Of a matrix that keeps its integers; None: of one that is rounded, or comes in blocks."""
        stored = self.stored(name)
        return None if stored is None else stored.bits

    def matrix(self, names: list[str], bias: Floats | None = None) -> PackedWeight:
        stored = [self.stored(name) for name in names]
        rows = [part for part in stored if part is not None]
        if len(rows) == len(stored) and len({part.bits for part in rows}) == 1:
            return self.context.pack_stored(rows, bias)
        parts = [self.blocks(name) for name in names]
        if len({part.bits for part in parts}) > 1:
            parts = [self.blocks(name, bits=8) for name in names]
        return self.context.pack(Blocks.concatenate(parts), bias)

    def blocks(self, name: str, *, bits: int | None = None) -> Blocks:
        """The tensor in blocks of `bits`, by default of the wanted or the file's own number."""
        bits = bits or self.bits
        exact = self.source.blocks(name, bits)
        return packed_weight.quantize(self.source.numbers(name), bits or 8) if exact is None else exact

    def stored(self, name: str, bits: int | None = None) -> StoredRows | None:
        """The tensor as a GGUF file holds it, where that is of `bits`, by default the wanted or any number."""
        stored, wanted = self.source.stored(name), bits or self.bits
        own = None if stored is None else STORED_BITS.get(stored.kind)
        return stored if own is not None and wanted in (None, own) else None
