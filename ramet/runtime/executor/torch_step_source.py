"""Checkpoints that torch reads, for the CPU step, which does without torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from ramet.errors import Unsupported
from ramet.runtime.executor.exact_blocks import exact_blocks
from ramet.runtime.executor.packed_checkpoint import PackedCheckpoint
from ramet.runtime.executor.safetensors_weights import SafetensorsSource
from ramet.runtime.kernels.packed_weight import BLOCK, Blocks, StoredRows
from ramet.runtime.layers.quantized_weight import GroupedMatrix
from ramet.runtime.layers.weight_slot import WHOLE
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec


class TorchStepSource:
    """Implements `StepSource` for safetensors files. `may_round`: also integers that no block holds, since rounding was asked for."""

    adds_norm_offset = False

    def __init__(self, files: ModelFiles, spec: ModelSpec, *, may_round: bool) -> None:
        self._packed = None if spec.checkpoint is None else PackedCheckpoint(files, spec, spec.checkpoint)
        self._source = self._packed or SafetensorsSource(files)
        self._may_round = may_round

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._source.shapes()

    def kind(self, name: str) -> None:
        return None

    def stored(self, name: str) -> StoredRows | None:
        return None

    def blocks(self, name: str, bits: int | None) -> Blocks | None:
        matrix = None if self._packed is None else self._packed.matrix(name.removesuffix(".weight"))
        blocks = None if matrix is None else exact_blocks(matrix, bits=bits)
        if matrix is not None and blocks is None and not self._may_round:
            raise Unsupported(f"blocks of {BLOCK} do not hold the numbers of {name} exactly; use --quantization none, q8_0 or q4_1")
        return blocks

    def numbers(self, name: str) -> npt.NDArray[np.float32]:
        pieces = [_numbers(piece.read()) for piece in self._source.pieces({name: WHOLE})]
        return torch.cat(pieces).contiguous().numpy()

    def drop_pages(self) -> None:
        """Its files are closed already."""


def _numbers(values: torch.Tensor | GroupedMatrix) -> torch.Tensor:
    return values.dequantise() if isinstance(values, GroupedMatrix) else values.float()
