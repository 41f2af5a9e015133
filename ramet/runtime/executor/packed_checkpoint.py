"""Checkpoints in safetensors whose matrices are quantised: several stored tensors → one `GroupedMatrix` of codes, scales and zeros.

    layout      tensors of a matrix X of N outputs and K inputs, in groups of G inputs (int32 words hold 32 / bits codes)
    awq         X.qweight [K, N/8], X.qzeros [K/G, N/8], X.scales [K/G, N]: half i of a word is output 8 j + (0 2 4 6 1 3 5 7)[i]
    gptq        X.qweight [K·bits/32, N], X.qzeros [K/G, N·bits/32], X.scales [K/G, N], X.g_idx [K]: the group of each input
    int-packed  X.weight_packed [N, K·bits/32], X.weight_scale [N, K/G], X.weight_zero_point [N·bits/32, K/G] if any
    int8        X.weight int8 [N, K], X.weight_scale [N, 1] or one number
    fp8         X.weight e4m3 [N, K], X.weight_scale one number, [N, 1], or X.weight_scale_inv [N/128, K/128]

Which matrices are quantised is read from the tensors, not from the config's lists of exceptions. Scales of activations are not used:
kernels that round activations do it per token, which is finer; scales of keys and values likewise, since these are kept without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from types import MappingProxyType

import torch

from ramet.errors import InvalidRequest, Unsupported
from ramet.runtime.executor.safetensors_weights import SafetensorsSource
from ramet.runtime.executor.weight_source import Piece
from ramet.runtime.layers.quantized_weight import FP8, GroupedMatrix, Kind, WeightScheme
from ramet.runtime.layers.weight_slot import Region
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import CheckpointFormat, ModelSpec

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
MARK = MappingProxyType({"awq": "qweight", "gptq": "qweight", "int-packed": "weight_packed", "int8": "weight_scale", "fp8": "weight_scale"})
"""The tensor that tells a quantised matrix."""
PARTS = MappingProxyType(
    {
        "awq": ("qweight", "qzeros", "scales"),
        "gptq": ("qweight", "qzeros", "scales", "g_idx"),
        "int-packed": ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
        "int8": ("weight", "weight_scale", "weight_zero_point", "input_scale", "input_zero_point"),
        "fp8": ("weight", "weight_scale", "weight_scale_inv", "input_scale", "weight_zero_point", "input_zero_point"),
    }
)
UNUSED = re.compile(r"\.(k_scale|v_scale|kv_scale|q_scale|prob_output_scale|k_proj\.output_scale|v_proj\.output_scale)$")


class PackedCheckpoint:
    """Implements `WeightSource`. Quantised matrices bear the name `X.weight` and are read as `GroupedMatrix`, whole or in part."""

    adds_norm_offset = False

    def __init__(self, files: ModelFiles, spec: ModelSpec, layout: CheckpointFormat) -> None:
        self._plain, self.layout = SafetensorsSource(files), layout
        self._stored = self._plain.shapes()
        mark = MARK[layout.layout]
        found = {name.rsplit(".", 1)[0] for name in self._stored if name.rsplit(".", 1)[-1] in (mark, f"{mark}_inv")}
        self._matrices = {name: _shape(self._stored, name, layout) for name in sorted(found)}
        self._surplus = set(self._unneeded_biases(spec))
        if not found:
            raise InvalidRequest(f"{files.path}: config.json says {layout.method}, but no tensor ends in .{mark}")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        parts = {f"{name}.{part}" for name in self._matrices for part in PARTS[self.layout.layout]} | self._surplus
        plain = {name: shape for name, shape in self._stored.items() if name not in parts and not UNUSED.search(name)}
        return plain | {f"{name}.weight": shape for name, shape in self._matrices.items()}

    def pieces(self, wanted: Mapping[str, Region]) -> Iterator[Piece]:
        plain = {}
        for name, region in wanted.items():
            matrix = name.removesuffix(".weight")
            if matrix in self._matrices:
                yield Piece(name, prod(self._matrices[matrix]) * self.layout.bits // 8, partial(self._part, matrix, region))
            else:
                plain[name] = region
        yield from self._plain.pieces(plain)

    def scheme(self, name: str) -> WeightScheme | None:
        """How the matrix `name` (without `.weight`) is kept; None: as numbers."""
        if name not in self._matrices:
            return None
        kind: Kind = "fp8" if self.layout.layout == "fp8" else "int4" if self.layout.bits == 4 else "int8"
        return WeightScheme(kind, self.layout.group, torch.float16 if self._has_half_scales(name) else torch.float32)

    def matrix(self, name: str) -> GroupedMatrix | None:
        """A quantised matrix, whole; None: it is stored as numbers."""
        if name not in self._matrices:
            return None
        readers: Mapping[str, Callable[[str], GroupedMatrix]] = {
            "awq": self._awq,
            "gptq": self._gptq,
            "int-packed": self._packed,
            "int8": self._int8,
            "fp8": self._fp8,
        }
        return readers[self.layout.layout](name)

    def _part(self, name: str, region: Region) -> GroupedMatrix:
        matrix = self.matrix(name)
        assert matrix is not None
        return matrix.part(region)

    def _read(self, name: str, part: str) -> torch.Tensor | None:
        full = f"{name}.{part}"
        return self._plain.read(full) if full in self._stored else None

    def _needed(self, name: str, part: str) -> torch.Tensor:
        tensor = self._read(name, part)
        if tensor is None:
            raise InvalidRequest(f"the checkpoint lacks {name}.{part}, without which {name} cannot be read ({self.layout.method})")
        return tensor

    def _awq(self, name: str) -> GroupedMatrix:
        order = torch.tensor(AWQ_ORDER).argsort()  # output → which part of the word

        def outputs(words: torch.Tensor) -> torch.Tensor:
            return fields(words, 4).view(len(words), -1, 8)[:, :, order].reshape(len(words), -1)

        codes, zeros = outputs(self._needed(name, "qweight")), outputs(self._needed(name, "qzeros"))
        return _grouped(codes.t(), self._needed(name, "scales").t(), zeros.t())

    def _gptq(self, name: str) -> GroupedMatrix:
        bits = self.layout.bits
        words, zero_words = self._needed(name, "qweight"), self._needed(name, "qzeros")
        codes = fields(words.t().contiguous(), bits)
        scales, zeros = self._needed(name, "scales").t(), fields(zero_words, bits).t().to(torch.int16) + self.layout.zero_offset
        order = _order(self._read(name, "g_idx"), codes.shape[1] // scales.shape[1], name)
        return _grouped(codes if order is None else codes[:, order], scales, zeros, order)

    def _packed(self, name: str) -> GroupedMatrix:
        bits, words = self.layout.bits, self._needed(name, "weight_packed")
        rows, columns = self._matrices[name]
        codes, scales = fields(words, bits)[:rows, :columns], self._needed(name, "weight_scale").view(rows, -1)
        stored = self._read(name, "weight_zero_point")
        middle = torch.full(scales.shape, 1 << (bits - 1))
        zeros = middle if stored is None else fields(stored.t().contiguous(), bits)[:, :rows].t()
        order = _order(self._read(name, "weight_g_idx"), columns // scales.shape[1], name)
        return _grouped(codes if order is None else codes[:, order], scales, zeros, order)

    def _int8(self, name: str) -> GroupedMatrix:
        codes = (self._needed(name, "weight").to(torch.int16) + 128).to(torch.uint8)
        scales = self._rowwise(self._needed(name, "weight_scale"), len(codes))
        zero_points = self._read(name, "weight_zero_point")
        zeros = torch.full(scales.shape, 128) if zero_points is None else self._rowwise(zero_points, len(codes)).to(torch.int16) + 128
        return _grouped(codes, scales, zeros)

    def _fp8(self, name: str) -> GroupedMatrix:
        codes = self._needed(name, "weight")
        if codes.dtype != FP8:
            raise Unsupported(f"{name}.weight is {codes.dtype}; fp8 checkpoints in e4m3 are supported")
        stored = self._read(name, "weight_scale_inv")
        scales = self._needed(name, "weight_scale") if stored is None else stored
        return GroupedMatrix(codes, self._rowwise(scales, len(codes)).float().contiguous())

    def _rowwise(self, scales: torch.Tensor, num_rows: int) -> torch.Tensor:
        """[N, groups] from one number, [N], [N, groups], or one line per block of rows."""
        if scales.numel() == 1:
            return scales.reshape(1, 1).expand(num_rows, 1)
        scales = scales.view(len(scales), -1)
        block = self.layout.block_rows
        return scales if block == 1 else scales.repeat_interleave(block, 0)[:num_rows]

    def _has_half_scales(self, name: str) -> bool:
        scales = next(f"{name}.{part}" for part in ("scales", "weight_scale", "weight_scale_inv") if f"{name}.{part}" in self._stored)
        return self._plain.type_of(scales) == "F16" and self.layout.layout != "fp8"

    def _unneeded_biases(self, spec: ModelSpec) -> Iterator[str]:
        """Some tools write a bias of zeros for every matrix, also where the model has none."""
        for name in self._matrices:
            kind = name.rsplit(".", 1)[-1]
            has_bias = (
                spec.qkv_bias
                if kind in ("q_proj", "k_proj", "v_proj", "qkv_proj")
                else spec.output_bias
                if kind == "o_proj"
                else spec.mlp_bias
            )
            bias = None if has_bias else self._read(name, "bias")
            if bias is not None and not bias.any():
                yield f"{name}.bias"


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[n, m] int32 words → [n, m · 32 / bits] uint8, the lowest bits of a word first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    parts = (words.to(torch.int32)[:, :, None] >> shifts) & ((1 << bits) - 1)
    return parts.to(torch.uint8).view(len(words), -1)


def _shape(stored: Mapping[str, tuple[int, ...]], name: str, layout: CheckpointFormat) -> tuple[int, int]:
    per_word = 32 // layout.bits
    if layout.layout in ("awq", "gptq"):
        rows, columns = stored[f"{name}.qweight"]
        return (columns * per_word, rows) if layout.layout == "awq" else (columns, rows * per_word)
    if layout.layout == "int-packed":
        rows, words = stored[f"{name}.weight_packed"]
        return rows, words * per_word
    rows, columns = stored[f"{name}.weight"]
    return rows, columns


def _grouped(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, order: torch.Tensor | None = None) -> GroupedMatrix:
    return GroupedMatrix(codes.contiguous(), scales.contiguous(), zeros.to(torch.int16).contiguous(), order)


def _order(groups: torch.Tensor | None, group: int, name: str) -> torch.Tensor | None:
    """The inputs sorted by group, from the group of each (act-order); None where they are in order already."""
    if groups is None or bool((groups.long() == torch.arange(len(groups)) // group).all()):
        return None
    order = groups.long().argsort(stable=True)
    if not bool((groups.long()[order] == torch.arange(len(groups)) // group).all()):
        raise Unsupported(f"{name}.g_idx has groups of other sizes than {group}; quantise the model again with equal groups")
    return order
