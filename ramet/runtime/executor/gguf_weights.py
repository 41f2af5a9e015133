"""Checkpoints in GGUF files as torch reads them: quantised blocks → float32, a piece of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from ramet.runtime.executor.gguf_tensors import PIECE_VALUES, GgufTensors, in_halves
from ramet.runtime.executor.weight_source import Piece
from ramet.runtime.gguf_file import GgufTensor
from ramet.runtime.gguf_quants import dequantise
from ramet.runtime.layers.weight_slot import Region
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec


class GgufSource:
    """Implements `WeightSource`. Dequantises a piece of rows when it is read."""

    adds_norm_offset = True

    def __init__(self, files: ModelFiles, spec: ModelSpec) -> None:
        self._tensors = GgufTensors(files, spec)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._tensors.shapes()

    def pieces(self, wanted: Mapping[str, Region]) -> Iterator[Piece]:
        for name, region in wanted.items():
            tensor = self._tensors[name]
            if len(tensor.shape) == 1:
                yield Piece(name, tensor.blocks.nbytes, partial(_read_vector, self._tensors, name, region))
            else:
                yield from _pieces_of_rows(name, tensor, region, self._tensors.interleaved(name))


def _pieces_of_rows(name: str, tensor: GgufTensor, region: Region, head_dim: int | None) -> Iterator[Piece]:
    """`head_dim`: of heads whose rows llama.cpp stores in another order; no piece divides one of those."""
    columns = range(tensor.shape[-1]) if region.columns is None else region.columns
    step = max(1, PIECE_VALUES // len(columns))
    step = step if head_dim is None else -(-step // head_dim) * head_dim
    row_bytes = tensor.blocks.shape[1] * len(columns) // tensor.shape[-1]
    done = 0
    for rows in (range(tensor.shape[0]),) if region.rows is None else region.rows:
        for part in (rows[first : first + step] for first in range(0, len(rows), step)):
            read = partial(_read, tensor, part, columns, head_dim)
            yield Piece(name, len(part) * row_bytes, read, done + part.start - rows.start)
        done += len(rows)


def _read(tensor: GgufTensor, rows: range, columns: range, head_dim: int | None) -> torch.Tensor:
    values = dequantise(tensor, rows.start, rows.stop, columns)
    return torch.from_numpy(values if head_dim is None else in_halves(values, head_dim))


def _read_vector(tensors: GgufTensors, name: str, region: Region) -> torch.Tensor:
    return region.of(torch.from_numpy(tensors.numbers(name)))
