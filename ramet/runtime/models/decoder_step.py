"""A dense decoder's whole step on the CPU in one call of C++, over packed 4- to 8-bit weights (`kernels/cpu/step.cpp`).

Its slow twin is `transformer.py` over the same weights dequantised: equal but for the rounding of activations to 8 bits
(per block of 32) on their way into each matrix product. No torch: a server on the CPU starts without it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ramet.errors import InternalError
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.cpu_kv_pool import CpuKvPool, KvType
from ramet.runtime.kernels.packed_weight import CpuContext, PackedWeight, StoredRows
from ramet.runtime.model_spec import Activation

IntArray = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")
"""As `kernels/cpu/kv.h` numbers them."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The numbers of a decoder that `step.cpp` needs."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rotary_dim: int
    activation: Activation
    norm_epsilon: float
    attention_scale: float
    embedding_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class StepLayer:
    """Packed matrices, and norm weights as float32 vectors (`query_norm` and `key_norm` where heads are normed, the last two where what is
    added to the residual stream is). `qkv`: one to three under each other, each of its own bits. `rotation`: cosine and sine [positions,
    rotary_dim / 2] float32, None where nothing is rotated. `window`: keys that a query sees, None for all."""

    qkv: tuple[PackedWeight, ...]
    out: PackedWeight
    gate_up: PackedWeight
    down: PackedWeight
    input_norm: Floats
    post_norm: Floats
    rotation: tuple[Floats, Floats] | None
    window: int | None = None
    query_norm: Floats | None = None
    key_norm: Floats | None = None
    added_by_attention_norm: Floats | None = None
    added_by_mlp_norm: Floats | None = None


@dataclass(frozen=True, slots=True)
class StepWeights:
    """`embedding`: [vocab, hidden] as a GGUF file holds it, or would."""

    layers: tuple[StepLayer, ...]
    head: PackedWeight
    final_norm: Floats
    embedding: StoredRows

    @property
    def num_bytes(self) -> int:
        matrices = [m for layer in self.layers for m in (*layer.qkv, layer.out, layer.gate_up, layer.down)] + [self.head]
        return sum(m.data.nbytes for m in matrices) + self.embedding.rows.nbytes


@dataclass(frozen=True, slots=True)
class StepBatch:
    """T tokens of R rows, and the S tokens whose logits are wanted. `lines`: the line of `page_tables` that holds each row's pages."""

    token_ids: IntArray  # [T]
    positions: IntArray  # [T]
    places: IntArray  # [T]: where keys and values go in the pool
    query_starts: npt.NDArray[np.int32]  # [R+1]: row r owns tokens query_starts[r] … query_starts[r+1] - 1
    kv_lens: npt.NDArray[np.int32]  # [R]: tokens of the row in the pool after this step
    lines: IntArray  # [R]
    page_tables: npt.NDArray[np.int32]  # [slots, pages]
    logit_indices: IntArray  # [S]


class DecoderStep:
    """Runs batches against a KV pool. Keeps the weights alive that the C++ side points to.

    A row's numbers never depend on the other rows of a batch. With `deterministic` they do not depend either on how the row's sequence was
    cut into steps (cached or computed, in which chunks, as prompt or token by token): prompts attend as decode rows do, more slowly.
    """

    def __init__(
        self, context: CpuContext, shape: StepShape, weights: StepWeights, kv_type: KvType, *, deterministic: bool = False
    ) -> None:
        self._one_by_one = int(deterministic)
        self.context, self.kv_type, self._shape, self._weights = context, kv_type, shape, weights
        self._layers = (cpu_library.Layer * len(weights.layers))(*(_layer(layer) for layer in weights.layers))
        self._model = self._describe()

    def forward(self, batch: StepBatch, pool: CpuKvPool, logits: Floats) -> None:
        """Logits of `batch.logit_indices` into `logits` [S, vocab]; writes the batch's keys and values into `pool`."""
        if pool.type != self.kv_type:
            raise InternalError(f"the KV pool holds {pool.type.name}, the step was made for {self.kv_type.name}")
        described = cpu_library.Batch(
            len(batch.token_ids),
            len(batch.kv_lens),
            len(batch.logit_indices),
            batch.page_tables.shape[1],
            pool.page_size,
            self._one_by_one,
            batch.token_ids.ctypes.data,
            batch.positions.ctypes.data,
            batch.places.ctypes.data,
            batch.query_starts.ctypes.data,
            batch.kv_lens.ctypes.data,
            batch.page_tables.ctypes.data,
            batch.logit_indices.ctypes.data,
            batch.lines.ctypes.data,
        )
        self.context.library.ramet_step(
            self.context.handle,
            ctypes.byref(self._model),
            ctypes.byref(described),
            pool.key_pointers,
            pool.value_pointers,
            logits.ctypes.data,
        )

    def _describe(self) -> cpu_library.Model:
        shape, weights = self._shape, self._weights
        return cpu_library.Model(
            num_layers=len(weights.layers),
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab=shape.vocab,
            kv_type=self.kv_type.number,
            rotary_dim=shape.rotary_dim,
            activation=ACTIVATIONS.index(shape.activation),
            norm_epsilon=shape.norm_epsilon,
            attention_scale=shape.attention_scale,
            embedding_scale=shape.embedding_scale,
            layers=ctypes.cast(self._layers, ctypes.POINTER(cpu_library.Layer)),
            head=weights.head.descriptor(),
            final_norm=weights.final_norm.ctypes.data,
            embedding=weights.embedding.rows.ctypes.data,
            embedding_row=weights.embedding.rows.shape[1],
            embedding_type=weights.embedding.number,
        )


def _layer(layer: StepLayer) -> cpu_library.Layer:
    norms = (layer.input_norm, layer.post_norm, layer.query_norm, layer.key_norm, layer.added_by_attention_norm, layer.added_by_mlp_norm)
    return cpu_library.Layer(
        (cpu_library.Linear * 3)(*(part.descriptor() for part in layer.qkv)),
        layer.out.descriptor(),
        layer.gate_up.descriptor(),
        layer.down.descriptor(),
        *(None if vector is None else vector.ctypes.data for vector in (*norms, *(layer.rotation or (None, None)))),
        layer.window or 0,
    )
