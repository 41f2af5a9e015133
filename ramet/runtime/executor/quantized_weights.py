"""A checkpoint as packed 4- and 8-bit matrices for the CPU step: GGUF's Q4_0, Q4_1 and Q8_0 keep their bits, and integers of AWQ and GPTQ
their values; everything else is rounded.

Which models the step covers is decided here, by name: `why_not` says what a model has that the step does not do.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ramet.errors import Unsupported
from ramet.runtime.executor.exact_blocks import exact_blocks
from ramet.runtime.executor.gguf_weights import GgufSource
from ramet.runtime.executor.packed_checkpoint import PackedCheckpoint
from ramet.runtime.executor.safetensors_weights import SafetensorsSource
from ramet.runtime.executor.weights import check_fit
from ramet.runtime.kernels import packed_weight
from ramet.runtime.kernels.packed_weight import BLOCK, PANEL, Blocks, CpuContext, PackedWeight, StoredRows
from ramet.runtime.layers.quantized_weight import GroupedMatrix
from ramet.runtime.layers.rotary import inverse_frequencies
from ramet.runtime.layers.weight_slot import WHOLE
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.decoder_step import DecoderStep, StepLayer, StepShape, StepWeights
from ramet.runtime.models.transformer import Transformer

Source = GgufSource | SafetensorsSource | PackedCheckpoint
LARGEST_HIDDEN = 8192
EMBEDDING = "model.embed_tokens.weight"


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
    files: ModelFiles, spec: ModelSpec, *, bits: int | None, threads: int, kv_dtype: torch.dtype, deterministic: bool = False
) -> QuantizedModel:
    """Pack the checkpoint. `bits`: 4 or 8 for every matrix; None keeps a GGUF file's own and rounds the rest to 8. Raises `Unsupported`
    for a model that `why_not` names, or where the kernels cannot be built."""
    if reason := why_not(spec):
        raise Unsupported(f"quantised CPU kernels do not cover {reason} ({spec.architecture}); use --quantization none")
    source = _source(files, spec)
    outline = Transformer(spec, dtype=torch.float32, device=torch.device("meta"))
    shapes = {name: slot.shape for name, slot in outline.slots().items()}
    check_fit(shapes, source.shapes(), files, spec)
    context = CpuContext(threads)
    weights = _Packer(source, context, bits).weights(spec)
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
    step = DecoderStep(context, shape, weights, kv_dtype, deterministic=deterministic)
    return QuantizedModel(step, weights.num_bytes, sum(int(np.prod(s)) for s in shapes.values()))


def _source(files: ModelFiles, spec: ModelSpec) -> Source:
    if files.format == "gguf":
        return GgufSource(files, spec)
    return SafetensorsSource(files) if spec.checkpoint is None else PackedCheckpoint(files, spec, spec.checkpoint)


class _Packer:
    def __init__(self, source: Source, context: CpuContext, bits: int | None) -> None:
        self.source, self.context, self.bits = source, context, bits

    def weights(self, spec: ModelSpec) -> StepWeights:
        embedding = self.blocks(EMBEDDING, bits=8)
        with ThreadPoolExecutor(2) as threads:  # one unpacks a layer's blocks while the other packs its own
            layers = tuple(threads.map(lambda i: self.layer(f"model.layers.{i}.", spec), range(spec.num_layers)))
        head = self.tied_head(embedding) if spec.tied_embeddings else self.matrix(["lm_head.weight"])
        cosine, sine = rotation_tables(spec)
        return StepWeights(layers, head, self.vector("model.norm.weight"), embedding, cosine, sine)

    def tied_head(self, embedding: Blocks) -> PackedWeight:
        stored = self.stored(EMBEDDING, bits=8)
        return self.context.pack(embedding) if stored is None else self.context.pack_stored([stored])

    def layer(self, prefix: str, spec: ModelSpec) -> StepLayer:
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        qkv = [f"{attention}{name}_proj" for name in "qkv"]
        bias = torch.cat([self.vector(f"{name}.bias") for name in qkv]) if spec.qkv_bias else None
        return StepLayer(
            qkv=self.matrix([f"{name}.weight" for name in qkv], bias),
            out=self.matrix([f"{attention}o_proj.weight"]),
            gate_up=self.matrix([f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"]),
            down=self.matrix([f"{mlp}down_proj.weight"]),
            input_norm=self.vector(f"{prefix}input_layernorm.weight"),
            post_norm=self.vector(f"{prefix}post_attention_layernorm.weight"),
            query_norm=self.vector(f"{attention}q_norm.weight") if spec.qk_norm else None,
            key_norm=self.vector(f"{attention}k_norm.weight") if spec.qk_norm else None,
        )

    def matrix(self, names: list[str], bias: torch.Tensor | None = None) -> PackedWeight:
        stored = [self.stored(name) for name in names]
        rows = [part for part in stored if part is not None]
        if len(rows) == len(stored) and len({packed_weight.EXACT_BITS[part.kind] for part in rows}) == 1:
            return self.context.pack_stored(rows, bias)
        parts = [self.blocks(name) for name in names]
        if len({part.bits for part in parts}) > 1:
            parts = [self.blocks(name, bits=8) for name in names]
        return self.context.pack(Blocks.concatenate(parts), bias)

    def blocks(self, name: str, *, bits: int | None = None) -> Blocks:
        """The tensor in blocks of `bits`, by default of the wanted or the file's own number."""
        bits = bits or self.bits
        if (stored := self.stored(name, bits)) is not None:
            return packed_weight.from_gguf(stored.kind, stored.rows)
        if isinstance(self.source, PackedCheckpoint) and (matrix := self.source.matrix(name.removesuffix(".weight"))) is not None:
            return self._as_stored(name, matrix, bits)
        return packed_weight.quantize(self.values(name).numpy(), bits or 8)

    def stored(self, name: str, bits: int | None = None) -> StoredRows | None:
        """The tensor as a GGUF file holds it, where that is exactly `bits`, by default the wanted or any number."""
        if not isinstance(self.source, GgufSource):
            return None
        kind, rows = self.source.stored(name)
        own, wanted = packed_weight.EXACT_BITS.get(kind), bits or self.bits
        return StoredRows(kind, rows) if own is not None and wanted in (None, own) else None

    def _as_stored(self, name: str, matrix: GroupedMatrix, bits: int | None) -> Blocks:
        blocks = exact_blocks(matrix, bits=bits)
        if blocks is None and self.bits is None:
            raise Unsupported(f"blocks of {BLOCK} do not hold the numbers of {name} exactly; use --quantization none, q8_0 or q4_1")
        return packed_weight.quantize(matrix.dequantise().numpy(), bits or 8) if blocks is None else blocks

    def vector(self, name: str) -> torch.Tensor:
        return self.values(name).contiguous()

    def values(self, name: str) -> torch.Tensor:
        pieces = [_numbers(piece.read()) for piece in self.source.pieces({name: WHOLE})]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _numbers(values: torch.Tensor | GroupedMatrix) -> torch.Tensor:
    return values.dequantise() if isinstance(values, GroupedMatrix) else values.float()


def rotation_tables(spec: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [context, head_dim/2] float32 of the model's one rotary embedding."""
    rope = spec.layers[0].rope
    assert rope is not None
    angles = torch.outer(torch.arange(spec.context_len).float(), inverse_frequencies(rope))
    factor = getattr(rope.scaling, "attention_factor", 1.0)
    return angles.cos().mul_(factor).contiguous(), angles.sin().mul_(factor).contiguous()
