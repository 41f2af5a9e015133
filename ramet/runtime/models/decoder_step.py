"""A dense decoder's whole step on the CPU in one call of C++, over packed 4- and 8-bit weights (`kernels/cpu/step.cpp`).

Its slow twin is `transformer.py` over the same weights dequantised: equal but for the rounding of activations to 8 bits
(per block of 32) on their way into each matrix product.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ramet.errors import InternalError
from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.packed_weight import Blocks, CpuContext, PackedWeight

IntArray = npt.NDArray[np.int64]
KV_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


@dataclass(frozen=True, slots=True)
class StepShape:
    """The numbers of a decoder that `step.cpp` needs."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_epsilon: float
    attention_scale: float


@dataclass(frozen=True, slots=True)
class StepLayer:
    """Packed matrices, and norm weights as float32 vectors (`query_norm` and `key_norm` where heads are normed)."""

    qkv: PackedWeight
    out: PackedWeight
    gate_up: PackedWeight
    down: PackedWeight
    input_norm: torch.Tensor
    post_norm: torch.Tensor
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class StepWeights:
    """`embedding` in 8-bit blocks [vocab, hidden]; `cosine` and `sine` [positions, head_dim/2] float32."""

    layers: tuple[StepLayer, ...]
    head: PackedWeight
    final_norm: torch.Tensor
    embedding: Blocks
    cosine: torch.Tensor
    sine: torch.Tensor

    @property
    def num_bytes(self) -> int:
        matrices = [m for layer in self.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down)] + [self.head]
        return sum(m.data.nbytes for m in matrices) + self.embedding.q.nbytes + self.embedding.d.nbytes


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """One token for each of n rows: `tokens`, `positions`, the `places` in the pool where its key and value go, and the line of
    `page_tables` [slots, pages] int32 that holds the row's pages. The others are [n] int64."""

    tokens: IntArray
    positions: IntArray
    places: IntArray
    lines: IntArray
    page_tables: npt.NDArray[np.int32]


class DecoderStep:
    """Runs batches against a KV pool. Keeps the weights alive that the C++ side points to.

    A row's numbers never depend on the other rows of a batch. With `deterministic` they do not depend either on how the row's sequence was
    cut into steps (cached or computed, in which chunks, as prompt or token by token): prompts attend as decode rows do, more slowly.
    """

    def __init__(
        self, context: CpuContext, shape: StepShape, weights: StepWeights, kv_dtype: torch.dtype, *, deterministic: bool = False
    ) -> None:
        self._one_by_one = int(deterministic)
        self.context, self._shape, self._weights, self._kv_dtype = context, shape, weights, kv_dtype
        self._layers = (cpu_library.Layer * len(weights.layers))(*(_layer(layer) for layer in weights.layers))
        self._model = self._describe()
        self._pools: tuple[KVPool, ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_void_p]] | None = None

    def forward(self, batch: ForwardBatch, pool: KVPool) -> torch.Tensor:
        """Logits [S, vocab] float32 of `batch.logit_indices`; writes the batch's keys and values into `pool`."""
        page_table = batch.page_table.contiguous()
        logits = torch.empty(len(batch.logit_indices), self._shape.vocab)
        described = cpu_library.Batch(
            len(batch.token_ids),
            len(batch.query_lens),
            len(batch.logit_indices),
            page_table.shape[1],
            pool.page_size,
            self._one_by_one,
            batch.token_ids.data_ptr(),
            batch.positions.data_ptr(),
            batch.kv_slots.data_ptr(),
            batch.query_starts.data_ptr(),
            batch.kv_lens.data_ptr(),
            page_table.data_ptr(),
            batch.logit_indices.data_ptr(),
            None,
        )
        self._run(described, pool, logits)
        return logits

    def decode(self, rows: DecodeRows, pool: KVPool, logits: torch.Tensor) -> None:
        """As `forward`, for rows of one token each, into `logits` [n, vocab] float32."""
        n = len(rows.tokens)
        numbers, lens = np.arange(n + 1, dtype=np.int64), (rows.positions + 1).astype(np.int32)
        starts = numbers.astype(np.int32)
        described = cpu_library.Batch(
            n,
            n,
            n,
            rows.page_tables.shape[1],
            pool.page_size,
            self._one_by_one,
            rows.tokens.ctypes.data,
            rows.positions.ctypes.data,
            rows.places.ctypes.data,
            starts.ctypes.data,
            lens.ctypes.data,
            rows.page_tables.ctypes.data,
            numbers.ctypes.data,
            rows.lines.ctypes.data,
        )
        self._run(described, pool, logits)

    def _run(self, batch: cpu_library.Batch, pool: KVPool, logits: torch.Tensor) -> None:
        keys, values = self._pool_pointers(pool)
        self.context.library.ramet_step(
            self.context.handle, ctypes.byref(self._model), ctypes.byref(batch), keys, values, logits.data_ptr()
        )

    @property
    def vocab_size(self) -> int:
        return self._shape.vocab

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
            kv_type=KV_TYPES[self._kv_dtype],
            norm_epsilon=shape.norm_epsilon,
            attention_scale=shape.attention_scale,
            layers=ctypes.cast(self._layers, ctypes.POINTER(cpu_library.Layer)),
            head=weights.head.descriptor(),
            final_norm=weights.final_norm.data_ptr(),
            embedding=weights.embedding.q.ctypes.data,
            embedding_scale=weights.embedding.d.ctypes.data,
            cosine=weights.cosine.data_ptr(),
            sine=weights.sine.data_ptr(),
        )

    def _pool_pointers(self, pool: KVPool) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_void_p]]:
        if self._pools is None or self._pools[0] is not pool:
            if pool.keys[0].dtype != self._kv_dtype:
                raise InternalError(f"the KV pool holds {pool.keys[0].dtype}, the step was made for {self._kv_dtype}")
            self._pools = (pool, _pointers(pool.keys), _pointers(pool.values))
        return self._pools[1], self._pools[2]


def _layer(layer: StepLayer) -> cpu_library.Layer:
    return cpu_library.Layer(
        layer.qkv.descriptor(),
        layer.out.descriptor(),
        layer.gate_up.descriptor(),
        layer.down.descriptor(),
        layer.input_norm.data_ptr(),
        layer.post_norm.data_ptr(),
        None if layer.query_norm is None else layer.query_norm.data_ptr(),
        None if layer.key_norm is None else layer.key_norm.data_ptr(),
    )


def _pointers(tensors: tuple[torch.Tensor, ...]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
