"""Checkpoints in safetensors files, single or sharded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ramet.errors import ModelNotFound
from ramet.runtime.executor.weight_source import Piece
from ramet.runtime.layers.weight_slot import Region
from ramet.runtime.model_files import ModelFiles, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class SafetensorsSource:
    """Reads each tensor, or the wanted spans of its rows and columns, out of the mapped file when its piece is read."""

    adds_norm_offset = False

    def __init__(self, files: ModelFiles) -> None:
        self._tensors: dict[str, Any] = {}
        for path in _weight_files(files):
            handle = _open(path)
            self._tensors |= dict.fromkeys(handle.keys(), handle)
        self._shapes = {name: tuple(handle.get_slice(name).get_shape()) for name, handle in self._tensors.items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._tensors[name].get_tensor(name)
        return tensor

    def type_of(self, name: str) -> str:
        """As the file calls it: F16, BF16, F8_E4M3, …"""
        return str(self._tensors[name].get_slice(name).get_dtype())

    def pieces(self, wanted: Mapping[str, Region]) -> Iterator[Piece]:
        for name, region in wanted.items():
            handle, shape = self._tensors[name], self._shapes[name]
            if region.rows is None and region.columns is None:
                yield Piece(name, prod(shape), partial(handle.get_tensor, name))
                continue
            width = prod(shape[1:]) if region.columns is None else len(region.columns) * prod(shape[2:])
            start = 0
            for rows in (range(shape[0]),) if region.rows is None else region.rows:
                yield Piece(name, len(rows) * width, partial(_read_part, handle, name, rows, region.columns), start)
                start += len(rows)


def _read_part(handle: Any, name: str, rows: range, columns: range | None) -> torch.Tensor:
    tensor = handle.get_slice(name)
    here = slice(rows.start, rows.stop)
    part: torch.Tensor = tensor[here] if columns is None else tensor[here, columns.start : columns.stop]
    return part


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelNotFound(f"cannot read {path}: {error}; fetch the model again with `ramet model fetch NAME`") from error


def _weight_files(files: ModelFiles) -> list[Path]:
    if (files.path / INDEX).is_file():
        weight_map = read_json(files.path / INDEX).get("weight_map", {})
        return [files.path / shard for shard in sorted(set(weight_map.values()))]
    if (files.path / SINGLE).is_file():
        return [files.path / SINGLE]
    if found := sorted(files.path.glob("*.safetensors")):
        return found
    raise ModelNotFound(
        f"{files.path} has a config.json but no .safetensors file; fetch the weights with `ramet model fetch {files.name}`, "
        "or pass --load-format dummy for random ones"
    )
