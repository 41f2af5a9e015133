"""GGML's block formats → float32, vectorised (layouts: ggml-common.h of github.com/ggml-org/ggml). No torch.

The functions work on a few thousand blocks at a time, so that intermediate arrays stay in the processor's cache, and numpy lets
other threads run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ramet.runtime.gguf_file import GgufTensor

Blocks = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]


def dequantise(tensor: GgufTensor, start: int = 0, stop: int | None = None, columns: range | None = None) -> Values:
    """Rows start … stop-1 of a tensor as float32 [rows, values of a row], or these columns of them: only their blocks are read."""
    _, size, num_bytes = tensor.type
    columns = range(tensor.shape[-1]) if columns is None else columns
    first, last = columns.start // size, -(-columns.stop // size)
    rows = tensor.blocks[start:stop, first * num_bytes : last * num_bytes]
    values = DEQUANTISE[tensor.type.name](rows.reshape(-1, num_bytes)).reshape(rows.shape[0], -1)
    return values[:, columns.start - first * size : columns.stop - first * size]


def _half(blocks: Blocks, start: int) -> Values:
    """One float16 per block as a column."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Blocks) -> Values:
    """[n, k] bytes → [n, 2k] numbers 0 … 15: all low halves, then all high ones."""
    count, width = packed.shape
    values = np.empty((count, 2 * width), np.float32)
    np.bitwise_and(packed, 15, out=values[:, :width], casting="unsafe")
    np.right_shift(packed, 4, out=values[:, width:], casting="unsafe")
    return values


def _fifth_bits(packed: Blocks) -> Values:
    """[n, 4] bytes → [n, 32] numbers 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little").astype(np.float32) * np.float32(16)


def _f32(blocks: Blocks) -> Values:
    return blocks.view(np.float32).copy()  # writable, as torch wants it


def _f16(blocks: Blocks) -> Values:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Blocks) -> Values:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: Blocks) -> Values:
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    values *= _half(blocks, 0)
    return values


def _q4_0(blocks: Blocks) -> Values:
    values = _nibbles(blocks[:, 2:])
    values -= 8
    values *= _half(blocks, 0)
    return values


def _q4_1(blocks: Blocks) -> Values:
    values = _nibbles(blocks[:, 4:])
    values *= _half(blocks, 0)
    values += _half(blocks, 2)
    return values


def _q5_0(blocks: Blocks) -> Values:
    values = _nibbles(blocks[:, 6:])
    values += _fifth_bits(blocks[:, 2:6])
    values -= 16
    values *= _half(blocks, 0)
    return values


def _q5_1(blocks: Blocks) -> Values:
    values = _nibbles(blocks[:, 8:])
    values += _fifth_bits(blocks[:, 4:8])
    values *= _half(blocks, 0)
    values += _half(blocks, 2)
    return values


def _q4_k(blocks: Blocks) -> Values:
    """256 values: 8 groups of 32, each with a 6-bit scale and a 6-bit minimum under the block's two float16."""
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | ((low >> 2) & 48)), axis=1) * _half(blocks, 0)
    minima = np.concatenate((middle & 63, (high >> 4) | ((middle >> 2) & 48)), axis=1) * _half(blocks, 2)
    values = _nibbles(np.ascontiguousarray(blocks[:, 16:]).reshape(-1, 32)).reshape(-1, 8, 32)
    values *= scales[:, :, None]
    values -= minima[:, :, None]
    return values.reshape(-1, 256)


def _q6_k(blocks: Blocks) -> Values:
    """256 values: 16 groups of 16, each with an 8-bit scale; 4 low bits and 2 high bits lie apart."""
    low = np.ascontiguousarray(blocks[:, :128]).reshape(-1, 2, 64)
    high = np.ascontiguousarray(blocks[:, 128:192]).reshape(-1, 2, 32)
    scales = blocks[:, 192:208].view(np.int8) * _half(blocks, 208)
    values = np.empty((blocks.shape[0], 2, 4, 32), np.float32)
    for quarter in range(4):
        bits = low[:, :, 32 * (quarter % 2) :][:, :, :32] >> (4 * (quarter // 2)) & 15
        values[:, :, quarter] = bits | ((high >> (2 * quarter) & 3) << 4)
    values -= 32
    grouped = values.reshape(-1, 16, 16)
    grouped *= scales[:, :, None]
    return grouped.reshape(-1, 256)


DEQUANTISE: Mapping[str, Callable[[Blocks], Values]] = MappingProxyType(
    {
        "F32": _f32,
        "F16": _f16,
        "BF16": _bf16,
        "Q8_0": _q8_0,
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q4_K": _q4_k,
        "Q6_K": _q6_k,
    }
)
"""Block type's name → [n, bytes of a block] → [n, values of a block]."""
