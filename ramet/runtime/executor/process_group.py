"""Collective operations over torch.distributed: NCCL between GPUs, Gloo between CPU processes.

Process groups are made by hand rather than through `init_process_group`, whose default group is one per process: two engines in one
process stay apart, and tests run several ranks on threads. Ranks meet through a file, and Gloo listens on the loopback device only.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import AllgatherOptions, AllreduceOptions, BroadcastOptions, FileStore, ReduceOp, Store

from ramet.errors import Unsupported
from ramet.runtime.executor.executor import Rank

_TIMEOUT = timedelta(hours=24)
"""Of a collective: ranks may wait for each other as long as one loads or nothing is asked; the death of one is noticed by other means."""


class ProcessRanks:
    """Implements `rank_group.RankGroup`. On a GPU the operations run on the current stream, so that a CUDA graph can record them."""

    def __init__(self, backend: Any, device: torch.device) -> None:
        """`backend`: a `ProcessGroupGloo` or `ProcessGroupNCCL`, whose collectives torch's stubs do not declare."""
        self._backend, self._device = backend, device
        self.rank: int = backend.rank()
        self.size: int = backend.size()
        self._sum, self._least = AllreduceOptions(), AllreduceOptions()
        self._gather, self._broadcast = AllgatherOptions(), BroadcastOptions()
        self._least.reduceOp = ReduceOp(ReduceOp.MIN)
        self._broadcast.rootRank = 0
        options: Any
        for options in (self._sum, self._least, self._gather, self._broadcast):
            options.asyncOp = False

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        if values.numel():  # a step may want no logits
            self._wait(self._backend.allreduce([values], self._sum))
        return values

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        gathered = values.new_empty(self.size * values.shape[0], *values.shape[1:])
        if values.numel():
            self._wait(self._backend._allgather_base(gathered, values, self._gather))
        return gathered.view(self.size, *values.shape)

    def broadcast(self, values: torch.Tensor) -> None:
        self._wait(self._backend.broadcast([values], self._broadcast))

    def least(self, number: int) -> int:
        value = torch.tensor([number], device=self._device)
        self._wait(self._backend.allreduce([value], self._least))
        return int(value.item())

    def _wait(self, work: distributed.Work | None) -> None:
        """NCCL's work on the current stream needs no waiting, and brings none."""
        if work is not None:
            work.wait()


def join_ranks(rank: Rank, device: torch.device) -> ProcessRanks:
    """Meet the other ranks; blocks until all are there."""
    store = FileStore(str(Path(rank.meeting) / "store"), rank.size)
    ranks = ProcessRanks(_nccl(store, rank) if device.type == "cuda" else _gloo(store, rank), device)
    ranks.least(0)  # NCCL connects at the first operation, which must not be one that a graph records
    return ranks


def join_on_threads(store: Store, index: int, size: int) -> ProcessRanks:
    """Ranks on threads of one CPU process."""
    return ProcessRanks(_gloo(store, Rank(index, size, "")), torch.device("cpu"))


def _gloo(store: Store, rank: Rank) -> distributed.ProcessGroupGloo:
    options: Any = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = _TIMEOUT
    return distributed.ProcessGroupGloo(store, rank.index, rank.size, options)


def _nccl(store: Store, rank: Rank) -> distributed.ProcessGroupNCCL:
    if not distributed.is_nccl_available():
        raise Unsupported("this build of torch has no NCCL, which tensor parallelism on GPUs needs; use --tp-size 1")
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = _TIMEOUT
    return distributed.ProcessGroupNCCL(store, rank.index, rank.size, options)
