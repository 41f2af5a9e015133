"""Several tensor-parallel executors on threads of one process, over one checkpoint: an engine's ranks
without their processes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch.distributed import HashStore

from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.computation import eager_forward
from ramet.runtime.executor.kv_pool import allocate_pool
from ramet.runtime.executor.process_group import ProcessRanks, join_on_threads
from ramet.runtime.executor.torch_executor import TorchExecutor
from ramet.runtime.executor.weights import LoadedModel, load_model
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.plan import BatchPlan, Capacity, RowResult, TokenMasks

CPU = torch.device("cpu")
CAPACITY = Capacity(num_pages=64, page_size=4, max_running=8)


def load_ranks(files: ModelFiles, size: int, config: ModelConfig | None = None) -> list[LoadedModel]:
    """The model of each rank; size 1: the whole model, without any other rank."""
    return [loaded for loaded, _ in _load_all(files, size, config or ModelConfig())]


def run_plans(files: ModelFiles, size: int, plans: Sequence[BatchPlan], masks: Sequence[TokenMasks | None]) -> list[tuple[RowResult, ...]]:
    """What rank 0 says of each plan, all of which are queued before the first result is read."""
    loaded = _load_all(files, size, ModelConfig())
    executors = [_executor(model, ranks) for model, ranks in loaded]
    with ThreadPoolExecutor(size) as threads:
        results = list(threads.map(lambda i: _run(executors[i], plans, masks if i == 0 else [None] * len(plans)), range(size)))
    return results[0]


def _load_all(files: ModelFiles, size: int, config: ModelConfig) -> list[tuple[LoadedModel, ProcessRanks | None]]:
    store = HashStore()

    def load(index: int) -> tuple[LoadedModel, ProcessRanks | None]:
        ranks = join_on_threads(store, index, size) if size > 1 else None
        return load_model(config, device=CPU, dtype=torch.float32, files=files, ranks=ranks), ranks

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(load, range(size)))


def _executor(loaded: LoadedModel, ranks: ProcessRanks | None) -> TorchExecutor:
    local = replace(loaded.info, num_kv_heads=len(loaded.model.shard.kv_heads))
    pool = allocate_pool(local, num_pages=CAPACITY.num_pages, page_size=CAPACITY.page_size, dtype=torch.float32, device=CPU)
    return TorchExecutor(eager_forward(loaded, TorchAttention(), pool), loaded.info, CAPACITY, CPU, num_threads=1, ranks=ranks)


def _run(executor: TorchExecutor, plans: Sequence[BatchPlan], masks: Sequence[TokenMasks | None]) -> list[tuple[RowResult, ...]]:
    pending = []
    for plan, mask in zip(plans, masks, strict=True):
        executor.launch(plan)
        pending.append(executor.sample(plan, mask))
    results = [step.result().rows for step in pending]
    executor.close()
    return results
