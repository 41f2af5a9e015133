"""Checkpoint → model: every tensor is streamed into its place in the (fused) parameters, so that the model is in memory once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ramet.log import get_logger
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.checkpoint_fit import check_fit
from ramet.runtime.executor.dummy_weights import fill_randomly
from ramet.runtime.executor.weight_source import Piece, WeightSource
from ramet.runtime.executor.weight_storage import open_weights
from ramet.runtime.layers.linear import Storage
from ramet.runtime.layers.quantized_weight import GroupedMatrix, QuantizedSlot
from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.layers.weight_slot import Slot
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.hf_config import model_spec
from ramet.runtime.models.model_info import model_info
from ramet.runtime.models.transformer import Transformer
from ramet.runtime.plan import ModelInfo

MAX_THREADS = 8

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: Transformer
    info: ModelInfo
    spec: ModelSpec


def load_model(
    config: ModelConfig, *, device: torch.device | str, dtype: torch.dtype, files: ModelFiles, ranks: RankGroup | None = None
) -> LoadedModel:
    """Build the model, or the part of it that this rank has, and fill it. Raises Unsupported or ConfigError for its config, InvalidRequest
    for a checkpoint that does not fit it, ModelNotFound for missing files."""
    spec = model_spec(files, overrides=config.json_model_override_args, context_length=config.context_length)
    weights = open_weights(config, files, spec, torch.device(device))
    with torch.no_grad():
        model = Transformer(spec, dtype=dtype, device=torch.device(device), ranks=ranks, storage=weights.storage).eval()
        if weights.source is None:
            fill_randomly(model, config.random_seed)
        else:
            fill(model.slots(), weights.source, files, spec)
    return LoadedModel(model, _info(config, model, files, dtype, weights.storage), spec)


def fill(slots: Mapping[str, Slot], source: WeightSource, files: ModelFiles, spec: ModelSpec) -> None:
    """Check the checkpoint's names and shapes against the slots, then stream every tensor into its slot, in threads, with progress."""
    check_fit({name: slot.shape for name, slot in slots.items()}, source.shapes(), files, spec)
    pieces = list(source.pieces({name: slot.region for name, slot in slots.items()}))

    @torch.no_grad()
    def place(piece: Piece) -> int:
        slot, values = slots[piece.name], piece.read()
        if isinstance(values, GroupedMatrix) and isinstance(slot, QuantizedSlot):
            slot.take(values)
            return piece.num_bytes
        values = values.dequantise() if isinstance(values, GroupedMatrix) else values
        if piece.start is None:
            slot.fill(values, add_offset=not source.adds_norm_offset)
        else:
            slot.fill_rows(piece.start, values)
        return piece.num_bytes

    total, bar_off = sum(piece.num_bytes for piece in pieces), not sys.stderr.isatty()
    bar = tqdm(total=total, desc=f"loading {files.name}", unit="B", unit_scale=True, disable=bar_off, leave=False)
    with bar, ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for done in as_completed([pool.submit(place, piece) for piece in pieces]):
            bar.update(done.result())


def _info(config: ModelConfig, model: Transformer, files: ModelFiles, dtype: torch.dtype, storage: Storage | None) -> ModelInfo:
    """Of the whole model, also where only a part of it is here."""
    here, nowhere = model.ranks is None, torch.device("meta")
    stored = model if here else Transformer(model.spec, dtype=dtype, device=nowhere, storage=storage)
    numbers = stored if storage is None else Transformer(model.spec, dtype=dtype, device=nowhere)
    return model_info(
        model.spec,
        name=config.served_model_name or files.name,
        num_parameters=sum(p.numel() for p in numbers.parameters()),
        weight_bytes=sum(p.nbytes for p in stored.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        kv_dtype=config.kv_cache_dtype,
    )
