"""GGML's block formats → float32, vectorised (layouts: ggml-common.h of github.com/ggml-org/ggml). No torch.

The functions work on a few thousand blocks at a time, so that intermediate arrays stay in the processor's cache, and numpy lets
other threads run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ramet.runtime.gguf_file import GgufTensor

Blocks = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]

IQ4_NUMBERS = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.int8).tobytes()
"""What the sixteen codes of IQ4_NL and IQ4_XS mean."""
E2M1_NUMBERS = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), np.int8).tobytes()
"""Twice what the sixteen codes of MXFP4 mean."""


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


def _planes(packed: Blocks, bits: int, *, times: int = 1) -> Blocks:
    """[n, k] bytes → [n, 8 / bits, k] numbers of so many bits, multiplied: the lowest of every byte, then the next ones."""
    planes = np.empty((packed.shape[0], 8 // bits, packed.shape[1]), np.uint8)
    for place in range(8 // bits):
        np.right_shift(packed, bits * place, out=planes[:, place])
    planes &= (1 << bits) - 1
    planes *= times
    return planes


def _of_32(packed: Blocks) -> Blocks:
    """Bytes of blocks as rows of 32."""
    return np.ascontiguousarray(packed).reshape(-1, 32)


def _scaled(codes: npt.NDArray[Any], scales: Values, minima: Values | None = None) -> Values:
    """n blocks of codes times scales [n, groups], less minima [n, groups] → [n, values of a block]. float32 codes are overwritten."""
    count, groups = scales.shape
    values = codes.astype(np.float32, copy=False).reshape(count, groups, -1)
    values *= scales[:, :, None]
    if minima is not None:
        values -= minima[:, :, None]
    return values.reshape(count, -1)


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


def _fives(packed: Blocks) -> Blocks:
    """The 20 bytes of 32 numbers 0 … 31: their fifth bits, then the others."""
    codes = _planes(packed[:, 4:], 4).reshape(-1, 32)
    codes |= np.unpackbits(packed[:, :4], axis=1, bitorder="little") << 4
    return codes


def _q5_0(blocks: Blocks) -> Values:
    codes = _fives(blocks[:, 2:])
    codes -= 16
    return _scaled(codes.view(np.int8), _half(blocks, 0))


def _q5_1(blocks: Blocks) -> Values:
    return _scaled(_fives(blocks[:, 4:]), _half(blocks, 0), -_half(blocks, 2))


def _q2_k(blocks: Blocks) -> Values:
    """256 values: 16 groups of 16, each with a 4-bit scale and a 4-bit minimum under the block's two float16."""
    scales, minima = (blocks[:, :16] & 15) * _half(blocks, 80), (blocks[:, :16] >> 4) * _half(blocks, 82)
    return _scaled(_planes(_of_32(blocks[:, 16:80]), 2), scales, minima)


def _q3_k(blocks: Blocks) -> Values:
    """256 values: 16 groups of 16, each with a 6-bit scale; the third bits lie apart, as do the scales' two high ones."""
    codes = _planes(_of_32(blocks[:, 32:96]), 2)
    codes |= _planes(blocks[:, :32], 1, times=4).reshape(-1, 4, 32)
    codes -= 4
    scales = _planes(blocks[:, 96:104], 4).reshape(-1, 16) | _planes(blocks[:, 104:108], 2, times=16).reshape(-1, 16)
    return _scaled(codes.view(np.int8), (scales.view(np.int8) - 32) * _half(blocks, 108))


def _scales_and_minima(blocks: Blocks) -> tuple[Values, Values]:
    """Of Q4_K and Q5_K: two float16, and under them a 6-bit scale and a 6-bit minimum of each of 8 groups, in 12 bytes."""
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | ((low >> 2) & 48)), axis=1)
    minima = np.concatenate((middle & 63, (high >> 4) | ((middle >> 2) & 48)), axis=1)
    return scales * _half(blocks, 0), minima * _half(blocks, 2)


def _q4_k(blocks: Blocks) -> Values:
    """256 values: 8 groups of 32."""
    return _scaled(_nibbles(_of_32(blocks[:, 16:])), *_scales_and_minima(blocks))


def _q5_k(blocks: Blocks) -> Values:
    """256 values: 8 groups of 32; the fifth bits lie apart."""
    codes = _planes(_of_32(blocks[:, 48:]), 4)
    codes |= _planes(blocks[:, 16:48], 1, times=16).reshape(-1, 2, 32)
    return _scaled(codes, *_scales_and_minima(blocks))


def _q6_k(blocks: Blocks) -> Values:
    """256 values: 16 groups of 16, each with an 8-bit scale; 4 low bits and 2 high bits lie apart."""
    low = np.ascontiguousarray(blocks[:, :128]).reshape(-1, 64)
    codes = _planes(low, 4).reshape(-1, 4, 32)
    codes |= _planes(_of_32(blocks[:, 128:192]), 2, times=16)
    codes -= 32
    return _scaled(codes.view(np.int8), blocks[:, 192:208].view(np.int8) * _half(blocks, 208))


def _looked_up(packed: Blocks, book: bytes, scales: Values) -> Values:
    """[n, 16] bytes of two places in `book` each (16 numbers of int8), first all low halves, times scales [n, 1] → [n, 32]."""
    by_low, by_high = book * 16, np.frombuffer(book, np.uint8).repeat(16).tobytes()
    count, raw = packed.shape[0], packed.tobytes()
    values = np.empty((count, 32), np.float32)
    values[:, :16] = np.frombuffer(raw.translate(by_low), np.int8).reshape(count, 16)
    values[:, 16:] = np.frombuffer(raw.translate(by_high), np.int8).reshape(count, 16)
    values *= scales
    return values


def _iq4_nl(blocks: Blocks) -> Values:
    return _looked_up(blocks[:, 2:], IQ4_NUMBERS, _half(blocks, 0))


def _iq4_xs(blocks: Blocks) -> Values:
    """256 values: 8 groups of 32, each with a 6-bit scale, whose 4 low bits and 2 high bits lie apart."""
    low, high = _planes(blocks[:, 4:8], 4), _planes(blocks[:, 2:4], 2, times=16)
    scales = low.swapaxes(1, 2).reshape(-1, 8) | high.swapaxes(1, 2).reshape(-1, 8)
    scaled = (scales.view(np.int8) - 32) * _half(blocks, 0)
    values = _looked_up(blocks[:, 8:].reshape(-1, 16), IQ4_NUMBERS, scaled.reshape(-1, 1))
    return values.reshape(-1, 256)


def _mxfp4(blocks: Blocks) -> Values:
    """32 values: a power of two (the byte is its exponent, 127 is 1) times E2M1 numbers, which the book doubles to have integers."""
    return _looked_up(blocks[:, 1:], E2M1_NUMBERS, np.ldexp(np.ones(1, np.float32), blocks[:, :1].astype(np.int32) - 128))


def _thirds(packed: Blocks, count: int) -> Blocks:
    """[n, k] bytes → [n, count · k] numbers 0, 1, 2: each byte is a fraction of 256 in base 3, first all first digits."""
    fractions = packed[:, None, :] * np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]
    thirds = (fractions >= 86).view(np.uint8)  # 86 and 171 are the first behind 256 / 3 and 512 / 3
    thirds += fractions >= 171
    return thirds.reshape(packed.shape[0], -1)


def _tq1_0(blocks: Blocks) -> Values:
    """256 values -1, 0, 1: five in a byte, the last sixteen four."""
    parts = (_thirds(blocks[:, :32], 5), _thirds(blocks[:, 32:48], 5), _thirds(blocks[:, 48:52], 4))
    codes = np.concatenate(parts, axis=1)
    codes -= 1
    return _scaled(codes.view(np.int8), _half(blocks, 52))


def _tq2_0(blocks: Blocks) -> Values:
    """256 values -1, 0, 1 (and 2, which no writer makes)."""
    codes = _planes(_of_32(blocks[:, :64]), 2)
    codes -= 1
    return _scaled(codes.view(np.int8), _half(blocks, 64))


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
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "IQ4_NL": _iq4_nl,
        "IQ4_XS": _iq4_xs,
        "MXFP4": _mxfp4,
        "TQ1_0": _tq1_0,
        "TQ2_0": _tq2_0,
    }
)
"""Block type's name → [n, bytes of a block] → [n, values of a block]."""
