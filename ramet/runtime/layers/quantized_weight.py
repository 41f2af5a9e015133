"""Matrices in 8 or 4 bits:  w[n, k] = scale[n, k // group] · (code[n, k] − zero[n, k // group]),  fp8 without zeros.

`GroupedMatrix` is what comes out of a checkpoint or of rounding, `QuantizedWeight` how a model keeps it. The torch operations here are the
reference for the kernels in `kernels/gpu/quantized_linear.py`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from ramet.errors import Unsupported
from ramet.runtime.layers.weight_slot import Region, empty_parameter

Kind = Literal["fp8", "int8", "int4"]
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
RUN = 128
"""Inputs whose 4-bit codes lie in 16 words of 32 bits: bits 4 i … 4 i + 3 of word j are those of input 16 i + j. So neighbouring words meet
neighbouring inputs. Matrices whose inputs are no multiple of 128 have runs of 32, in 4 words."""
SHORT_RUN = 32


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """`group`: inputs that share a scale, None: all of a row. Scales that were fp16 stay it: they are read with every weight."""

    kind: Kind
    group: int | None = None
    scale_dtype: torch.dtype = torch.float32

    def num_groups(self, num_columns: int) -> int:
        return 1 if self.group is None else num_columns // self.group


@dataclass(frozen=True, slots=True)
class GroupedMatrix:
    """codes [N, K] float8 or uint8, scales [N, groups], zeros [N, groups] int16 (None: fp8). `order` [K]: the input that column i
    multiplies, where a checkpoint sorted them; None: input i."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    order: torch.Tensor | None = None

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def dequantise(self) -> torch.Tensor:
        """[N, K] float32, inputs in their own order."""
        values = _scaled(self.codes.float(), self.scales, self.zeros)
        if self.order is None:
            return values
        return torch.empty_like(values).index_copy_(1, self.order, values)

    def part(self, region: Region) -> GroupedMatrix:
        """The rows and columns of `region`; columns must begin and end with a group."""
        rows = Region(rows=region.rows)
        codes, scales = rows.of(self.codes), rows.of(self.scales)
        zeros = None if self.zeros is None else rows.of(self.zeros)
        if region.columns is None:
            return GroupedMatrix(codes, scales, zeros, self.order)
        columns, group = region.columns, self.group
        ends = columns.start % group or columns.stop % group
        if self.order is not None or (ends and self.scales.shape[1] > 1):
            raise Unsupported(f"inputs {columns.start} to {columns.stop} of a matrix are no whole groups of {group}; use fewer ranks")
        groups = slice(columns.start // group, -(-columns.stop // group))
        return GroupedMatrix(codes[:, columns.start : columns.stop], scales[:, groups], None if zeros is None else zeros[:, groups])


def quantise(values: torch.Tensor, scheme: WeightScheme) -> GroupedMatrix:
    """Round [N, K] to the scheme: fp8 by the largest magnitude of a group, integers over the range of its values, zero included."""
    grouped = values.float().reshape(len(values), scheme.num_groups(values.shape[1]), -1)
    if scheme.kind == "fp8":
        scales = (grouped.abs().amax(-1) / FP8_MAX).clamp_(min=torch.finfo(torch.float32).tiny).to(scheme.scale_dtype)
        codes = (grouped / scales.float()[:, :, None]).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
        return GroupedMatrix(codes.view(values.shape), scales)
    most = 255 if scheme.kind == "int8" else 15
    low, high = grouped.amin(-1).clamp_(max=0), grouped.amax(-1).clamp_(min=0)
    scales = ((high - low) / most).clamp_(min=torch.finfo(scheme.scale_dtype).tiny).to(scheme.scale_dtype)
    wide = scales.float()
    zeros = (-low / wide).round_().clamp_(0, most)
    codes = (grouped / wide[:, :, None]).round_().add_(zeros[:, :, None]).clamp_(0, most)
    return GroupedMatrix(codes.to(torch.uint8).view(values.shape), scales, zeros.to(torch.int16))


class QuantizedWeight(nn.Module):
    """[N, K] as codes [N, K] (4 bits: [N, K/8] int32, see RUN), scales and zeros [N, groups]. Empty until a loader stores rows."""

    def __init__(self, num_rows: int, num_columns: int, scheme: WeightScheme, device: torch.device) -> None:
        super().__init__()
        unit = scheme.group or (SHORT_RUN if scheme.kind == "int4" else 1)
        if num_columns % unit or (scheme.kind == "int4" and unit % SHORT_RUN):
            raise Unsupported(f"{num_columns} inputs of a matrix do not divide into groups of {unit} for {scheme.kind} weights")
        self.num_rows, self.num_columns, self.scheme = num_rows, num_columns, scheme
        width = num_columns // 8 if scheme.kind == "int4" else num_columns
        groups = scheme.num_groups(num_columns)
        kinds = {"fp8": FP8, "int8": torch.uint8, "int4": torch.int32}
        self.codes = empty_parameter(num_rows, width, dtype=kinds[scheme.kind], device=device)
        self.scales = empty_parameter(num_rows, groups, dtype=scheme.scale_dtype, device=device)
        self.zeros = None if scheme.kind == "fp8" else empty_parameter(num_rows, groups, dtype=torch.int16, device=device)
        self.order: torch.Tensor | None = None
        self._has_rows, self._ordering = False, threading.Lock()

    @property
    def group(self) -> int:
        return self.num_columns if self.scheme.group is None else self.scheme.group

    def store(self, start: int, matrix: GroupedMatrix) -> None:
        """Rows start … start + N - 1. All rows must have their inputs in one order."""
        here = slice(start, start + len(matrix.codes))
        self._take_order(matrix.order)
        self.codes[here].copy_(matrix.codes if self.scheme.kind != "int4" else pack(matrix.codes))
        self.scales[here].copy_(matrix.scales)
        if self.zeros is not None and matrix.zeros is not None:
            self.zeros[here].copy_(matrix.zeros)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """[N, K], columns as they are stored: behind `order`."""
        codes = unpack(self.codes) if self.scheme.kind == "int4" else self.codes
        return _scaled(codes.float(), self.scales, self.zeros).to(dtype)

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x Wᵀ + b by way of the whole matrix."""
        return F.linear(self.ordered(x), self.dequantise(x.dtype), bias)

    def ordered(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.order is None else x.index_select(-1, self.order)

    def _take_order(self, order: torch.Tensor | None) -> None:
        with self._ordering:
            if not self._has_rows:
                self.order, self._has_rows = None if order is None else order.to(self.codes.device), True
            elif not _same(self.order, order):
                raise Unsupported("matrices that read the same inputs sort them differently; load them with --quantization none")


@dataclass(frozen=True, slots=True)
class QuantizedSlot:
    """Rows of a quantised weight, from `first_row` on. Numbers are rounded as they arrive, so that a model never is in memory unrounded."""

    weight: QuantizedWeight
    first_row: int
    shape: tuple[int, ...]
    region: Region

    def fill(self, source: torch.Tensor, *, add_offset: bool = True) -> None:
        self.fill_rows(0, source)

    def fill_rows(self, start: int, source: torch.Tensor) -> None:
        values = source.to(self.weight.codes.device)
        self.weight.store(self.first_row + start, quantise(values, self.weight.scheme))

    def take(self, matrix: GroupedMatrix) -> None:
        """The whole region as a checkpoint has it."""
        self.weight.store(self.first_row, matrix)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """[N, K] codes 0…15 → [N, K/8] int32."""
    parts = codes.view(len(codes), -1, 8, _run(codes.shape[1]) // 8).to(torch.int32)
    words = torch.zeros_like(parts[:, :, 0])
    for i in range(8):
        words |= parts[:, :, i] << (4 * i)
    return words.view(len(codes), -1)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack`."""
    words = packed.view(len(packed), -1, 1, _run(packed.shape[1] * 8) // 8)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)[:, None]
    return ((words >> shifts) & 15).to(torch.uint8).view(len(packed), -1)


def _run(num_columns: int) -> int:
    return SHORT_RUN if num_columns % RUN else RUN


def _scaled(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
    grouped = codes.view(len(codes), scales.shape[1], -1)
    if zeros is not None:
        grouped = grouped - zeros.float()[:, :, None]
    return (grouped * scales.float()[:, :, None]).view(codes.shape)


def _same(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left.cpu(), right.cpu())
