"""Weights in the panel layout of `kernels/cpu/linear.h`: made from GGUF blocks with their integers, or quantised from numbers.

Blocks have 32 values along the input dimension. 4 and 5 bits: w = d·q + m with q in 0…15 or 0…31 (in symmetric types m = −8d or −16d).
6 bits: w = d·q with q in −32…31 and a d for each half of the block. 8 bits: w = d·q with q in −128…127. Scales are fp16. No torch.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ramet.errors import Unsupported
from ramet.runtime.gguf_file import BLOCK_TYPES
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.huge_memory import HugeMemory

BLOCK = 32
PANEL = 8

EXACT_BITS = MappingProxyType({"Q4_0": 4, "Q4_1": 4, "Q8_0": 8})
"""GGUF types that are `Blocks` without rounding."""

STORED_BITS = MappingProxyType(
    {**EXACT_BITS, "Q5_0": 5, "Q5_1": 5, "Q3_K": 6, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "IQ4_NL": 8, "IQ4_XS": 8},
)
"""GGUF types that become panels of so many bits with their integers; those of 256 values a block with scales rounded to fp16."""

_TYPES = MappingProxyType({block.name: (number, block) for number, block in BLOCK_TYPES.items()})

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix [n, k] in blocks: q [n, k] int8 (0…15 or −128…127), d and m [n, k/32] float16 (m None for 8 bits)."""

    q: npt.NDArray[np.int8]
    d: npt.NDArray[np.float16]
    m: npt.NDArray[np.float16] | None

    @property
    def bits(self) -> int:
        return 8 if self.m is None else 4

    @classmethod
    def concatenate(cls, parts: list[Blocks]) -> Blocks:
        """Rows of several matrices under each other; all of one width in bits."""
        low = [part.m for part in parts if part.m is not None]
        if len(low) not in (0, len(parts)):
            raise ValueError("4-bit and 8-bit matrices cannot be fused")
        return cls(
            np.concatenate([part.q for part in parts]),
            np.concatenate([part.d for part in parts]),
            np.concatenate(low) if low else None,
        )

    def dequantize(self) -> Floats:
        """[n, k] float32."""
        scaled = self.q.reshape(len(self.q), -1, BLOCK) * self.d.astype(np.float32)[:, :, None]
        if self.m is not None:
            scaled = scaled + self.m.astype(np.float32)[:, :, None]
        return scaled.reshape(self.q.shape).astype(np.float32)


def from_gguf(kind: str, raw: Bytes) -> Blocks:
    """Blocks of a GGUF tensor; `raw` is [n, bytes of a row]. Raises `Unsupported` for types that have no exact panel form."""
    n = len(raw)
    if kind == "Q8_0":
        blocks = raw.reshape(n, -1, 2 + BLOCK)
        return Blocks(_contiguous(blocks[:, :, 2:].view(np.int8), n), _halves(blocks[:, :, :2], n), None)
    if kind in {"Q4_0", "Q4_1"}:
        head = 4 if kind == "Q4_1" else 2
        blocks = raw.reshape(n, -1, head + BLOCK // 2)
        nibbles = blocks[:, :, head:]
        d = _halves(blocks[:, :, :2], n)
        m = _halves(blocks[:, :, 2:4], n) if kind == "Q4_1" else (d * np.float16(-8)).astype(np.float16)
        return Blocks(_contiguous(np.concatenate([nibbles & 15, nibbles >> 4], axis=2).view(np.int8), n), d, m)
    raise Unsupported(f"GGUF type {kind} has no exact 4- or 8-bit panel form")


def quantize(weight: Floats, bits: int) -> Blocks:
    """Round [n, k] float32 to blocks of `bits` (4 or 8): the block's largest magnitude, or its range, is represented exactly."""
    grouped = weight.reshape(len(weight), -1, BLOCK)
    if bits == 8:
        d = (np.abs(grouped).max(axis=2) / 127).astype(np.float16)
        q = np.rint(grouped * _inverse(d)[:, :, None]).clip(-127, 127)
        return Blocks(_contiguous(q.astype(np.int8), len(weight)), d, None)
    low = grouped.min(axis=2).astype(np.float16)
    d = ((grouped.max(axis=2) - low.astype(np.float32)) / 15).astype(np.float16)
    q = np.rint((grouped - low.astype(np.float32)[:, :, None]) * _inverse(d)[:, :, None]).clip(0, 15)
    return Blocks(_contiguous(q.astype(np.int8), len(weight)), d, low)


def _inverse(d: npt.NDArray[np.float16]) -> Floats:
    wide = d.astype(np.float32)
    return np.divide(1.0, wide, out=np.zeros_like(wide), where=wide != 0)


def _contiguous(values: npt.NDArray[np.int8], n: int) -> npt.NDArray[np.int8]:
    return np.ascontiguousarray(values).reshape(n, -1)


def _halves(raw: Bytes, n: int) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(raw).view(np.float16).reshape(n, -1)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """A matrix as a GGUF file holds it, rows [n, bytes of a row]. `k` and `bits` only of those in `STORED_BITS`."""

    kind: str
    rows: Bytes

    @property
    def k(self) -> int:
        _, block = _TYPES[self.kind]
        return int(self.rows.shape[1] // block.num_bytes * block.num_values)

    @property
    def bits(self) -> int:
        return STORED_BITS[self.kind]

    @property
    def number(self) -> int:
        """GGUF's of the type."""
        return _TYPES[self.kind][0]

    @classmethod
    def of(cls, blocks: Blocks) -> StoredRows:
        """8-bit blocks as Q8_0."""
        n, scales = len(blocks.q), blocks.d[:, :, None].view(np.uint8)
        rows = np.concatenate((scales, blocks.q.view(np.uint8).reshape(n, -1, BLOCK)), axis=2)
        return cls("Q8_0", rows.reshape(n, -1))


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A packed matrix [n, k], ready for the kernels."""

    n: int
    k: int
    bits: int
    data: Bytes
    bias: Floats | None = None  # [n]

    def descriptor(self) -> cpu_library.Linear:
        """The C view; valid as long as this object lives."""
        bias = None if self.bias is None else self.bias.ctypes.data
        return cpu_library.Linear(self.n, self.k, self.bits, self.data.ctypes.data, bias)


class CpuContext:
    """Threads and scratch memory of the kernels. One forward pass at a time; `pack` may be called from several threads."""

    def __init__(self, num_threads: int) -> None:
        self.library = cpu_library.load()
        self.handle: c_void_p | None = cpu_library.new_context(num_threads)
        self._memory, self._packing = HugeMemory(), threading.Lock()

    def close(self) -> None:
        if self.handle:
            self.library.ramet_context_free(self.handle)
            self.handle = None

    def pack_stored(self, parts: Sequence[StoredRows], bias: Floats | None = None) -> PackedWeight:
        """Matrices of a GGUF file under each other, all of one width in bits, in one pass over the bytes."""
        k, bits = parts[0].k, parts[0].bits
        sizes = [self.library.ramet_packed_bytes(bits, *_panels(len(part.rows), part.k)) for part in parts]
        with self._packing:
            data = self._memory.empty(sum(sizes))
            at = data.ctypes.data
            for part, size in zip(parts, sizes, strict=True):
                rows = np.ascontiguousarray(part.rows)
                self.library.ramet_pack_stored(self.handle, part.number, len(rows), k, rows.ctypes.data, rows.shape[1], at)
                at += size
        return PackedWeight(sum(len(part.rows) for part in parts), k, bits, data, bias)

    def pack(self, blocks: Blocks, bias: Floats | None = None) -> PackedWeight:
        n, k = _panels(*blocks.q.shape)
        low = blocks.d if blocks.m is None else blocks.m
        with self._packing:
            data = self._memory.empty(self.library.ramet_packed_bytes(blocks.bits, n, k))
            self.library.ramet_pack(
                self.handle, blocks.bits, n, k, blocks.q.ctypes.data, blocks.d.ctypes.data, low.ctypes.data, data.ctypes.data
            )
        return PackedWeight(n, k, blocks.bits, data, bias)

    def linear(self, weight: PackedWeight, x: Floats) -> Floats:
        """x [rows, k] → [rows, n], activations quantised to 8 bits."""
        x = np.ascontiguousarray(x)
        y = np.empty((len(x), weight.n), dtype=np.float32)
        self.library.ramet_linear(self.handle, ctypes.byref(weight.descriptor()), x.ctypes.data, len(x), y.ctypes.data)
        return y


def _panels(n: int, k: int) -> tuple[int, int]:
    if n % PANEL or k % BLOCK:
        raise Unsupported(
            f"a quantised matrix of {n}×{k} needs rows in multiples of {PANEL} and columns of {BLOCK}; use --quantization none"
        )
    return n, k
