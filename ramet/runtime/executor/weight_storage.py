"""In how many bits each matrix of a model is kept: the checkpoint's own, or rounded while it is loaded (`--quantization`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from ramet.errors import Unsupported
from ramet.log import get_logger
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.checkpoint_fit import check_experts, check_load_format, check_quantization
from ramet.runtime.executor.expert_tensors import ExpertTensors
from ramet.runtime.executor.gguf_weights import GgufSource
from ramet.runtime.executor.packed_checkpoint import PackedCheckpoint
from ramet.runtime.executor.safetensors_weights import SafetensorsSource
from ramet.runtime.executor.weight_source import Piece, WeightSource
from ramet.runtime.layers.linear import Storage
from ramet.runtime.layers.quantized_weight import GroupedMatrix, WeightScheme, quantise
from ramet.runtime.layers.weight_slot import Region
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec

ROUNDED = MappingProxyType(
    {
        "fp8": WeightScheme("fp8"),
        "int8": WeightScheme("int8", None, torch.float16),
        "int4": WeightScheme("int4", 128, torch.float16),
    }
)
"""--quantization of numbers while they are loaded. Embedding, head, norms and biases stay numbers."""
INT4_GROUPS = (128, 64, 32)

_LOG = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's numbers come from (None: they are drawn), and in how many bits its matrices are kept (None: as numbers)."""

    source: WeightSource | None
    storage: Storage | None = None


def open_weights(config: ModelConfig, files: ModelFiles, spec: ModelSpec, device: torch.device) -> Weights:
    """Raises `ConfigError` where `--quantization` and the checkpoint contradict each other, `Unsupported` for experts in few bits."""
    on_gpu = device.type == "cuda"
    check_experts(config, spec, keeps_codes=on_gpu)
    if config.load_format == "dummy":
        return Weights(None, _rounding(config.quantization) if on_gpu else None)
    check_quantization(config, spec)
    source = open_source(config, files, spec)
    if isinstance(source, PackedCheckpoint):
        weights = _as_stored(source, config, on_gpu)
        return weights if spec.experts is None else Weights(ExpertTensors(source))
    if spec.experts is not None:
        return Weights(ExpertTensors(source))
    storage = _rounding(config.quantization)
    if storage is None or on_gpu:
        return Weights(source, storage)
    _LOG.info("Weights are rounded to %s while they are loaded, and computed with in float", config.quantization)
    return Weights(RoundedSource(source, storage))


def open_source(config: ModelConfig, files: ModelFiles, spec: ModelSpec) -> WeightSource:
    """The checkpoint's format is the file's, or config.json's."""
    check_load_format(config, files)
    if files.format == "gguf":
        return GgufSource(files, spec)
    return SafetensorsSource(files) if spec.checkpoint is None else PackedCheckpoint(files, spec, spec.checkpoint)


def _as_stored(source: PackedCheckpoint, config: ModelConfig, on_gpu: bool) -> Weights:
    layout = source.layout
    if not on_gpu or config.quantization == "none":
        _LOG.info("The %s checkpoint's %d-bit weights are dequantised while they are loaded", layout.method, layout.bits)
        return Weights(source)
    _LOG.info("Weights: %s checkpoint, kept in %d bits (%s)", layout.method, layout.bits, layout.layout)
    return Weights(source, lambda name, _: source.scheme(name))


def _rounding(wanted: str | None) -> Storage | None:
    """Every matrix of a layer."""
    scheme = ROUNDED.get(wanted or "")
    if scheme is None:
        return None

    def storage(name: str, num_columns: int) -> WeightScheme | None:
        if not name.startswith("model.layers."):
            return None
        return scheme if scheme.group is None else replace(scheme, group=_group(name, num_columns))

    return storage


def _group(name: str, num_columns: int) -> int:
    group = next((size for size in INT4_GROUPS if num_columns % size == 0), None)
    if group is None:
        raise Unsupported(f"{name} has {num_columns} inputs, which do not divide into groups of {INT4_GROUPS[-1]}; use int8 or fp8")
    return group


class RoundedSource:
    """Implements `WeightSource` over another one: matrices come rounded, and as numbers again."""

    def __init__(self, source: WeightSource, storage: Storage) -> None:
        self._source, self._storage = source, storage

    @property
    def adds_norm_offset(self) -> bool:
        return self._source.adds_norm_offset

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._source.shapes()

    def pieces(self, wanted: Mapping[str, Region]) -> Iterator[Piece]:
        shapes = self.shapes()
        for piece in self._source.pieces(wanted):
            shape = shapes[piece.name]
            scheme = self._storage(piece.name.removesuffix(".weight"), shape[-1]) if len(shape) == 2 else None
            yield piece if scheme is None else replace(piece, read=_Rounding(piece, scheme))


@dataclass(frozen=True, slots=True)
class _Rounding:
    piece: Piece
    scheme: WeightScheme

    def __call__(self) -> torch.Tensor:
        values = self.piece.read()
        return values.dequantise() if isinstance(values, GroupedMatrix) else quantise(values, self.scheme).dequantise()
