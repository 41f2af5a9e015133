"""The other tensor-parallel ranks as rank 0 sees them: processes that are told what to run, and whose end is the end of the worker.

    rank 0's worker    plan ─► tell(RunForward(plan)) ─► its own executor ─► … result
    rank i             receives it, and runs the same plan; its tensors meet the others' in every layer

A rank that ends leaves the others waiting in a collective operation, for ever where that runs on a GPU. So `on_loss` may end this process.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ramet.errors import RametError, WorkerDied
from ramet.log import get_logger
from ramet.runtime.engine.channel import Channel, ChannelClosed, Encoded, say_last_words
from ramet.runtime.engine.faults import error_of, fault_of
from ramet.runtime.engine.messages import Fault, RunForward, RunSampling, Shutdown
from ramet.runtime.engine.processes import ProcessWorker
from ramet.runtime.executor.executor import Executor, PendingResult, Rank
from ramet.runtime.host_memory import HostMemory
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, StepResult, TokenMasks

_log = get_logger(__name__)
_NEWS_SECONDS = 2.0  # a failed step and the news of a rank's end come in any order
_SHUTDOWN_SECONDS = 5.0
_GRACE_SECONDS = 1.0

Launch = Callable[[Rank], ProcessWorker]


class Followers:
    """Ranks 1 … size-1, started at once and watched by a thread each."""

    def __init__(self, size: int, launch: Launch, on_loss: Callable[[RametError], None]) -> None:
        """`on_loss` is called, on a thread of its own, with what ended a rank: once, unless `close` asked for the end."""
        self._on_loss = on_loss
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._lost, self._loss = threading.Event(), WorkerDied("no rank is lost")
        self._meeting = tempfile.mkdtemp(prefix="ramet-ranks-")
        self.rank = Rank(0, size, self._meeting)
        self._handles = [launch(Rank(index, size, self._meeting)) for index in range(1, size)]
        self._watchers = [
            threading.Thread(target=self._watch, args=(index, handle), name=f"ramet-rank-{index}", daemon=True)
            for index, handle in enumerate(self._handles, 1)
        ]
        for watcher in self._watchers:
            watcher.start()

    @property
    def process_ids(self) -> tuple[int | None, ...]:
        return tuple(handle.process_id for handle in self._handles)

    def tell(self, message: RunForward | RunSampling | Shutdown) -> None:
        """To all of them. Raises `WorkerDied` when one is gone."""
        if self._lost.is_set():
            raise self._loss
        encoded = Encoded.of(message)
        for handle in self._handles:
            handle.channel.send_encoded(encoded)

    def loss_behind(self, error: Exception) -> WorkerDied:
        """Why a step failed here: a rank is gone, or the ranks can no longer agree because it failed."""
        if self._lost.wait(_NEWS_SECONDS):
            return self._loss
        return WorkerDied(f"a step failed on tensor-parallel rank 0: {type(error).__name__}: {error}")

    def close(self, patience: float = _SHUTDOWN_SECONDS) -> None:
        """End them, and kill those that take longer than `patience` seconds. Idempotent."""
        self._closing.set()
        with suppress(WorkerDied):
            self.tell(Shutdown())
        for handle, watcher in zip(self._handles, self._watchers, strict=True):
            watcher.join(patience)
            if watcher.is_alive():
                handle.kill()
                watcher.join()
            handle.release()
        shutil.rmtree(self._meeting, ignore_errors=True)

    def _watch(self, index: int, handle: ProcessWorker) -> None:
        fault: Fault | None = None
        try:
            while True:
                fault = next((message for message in handle.channel.receive(None) if isinstance(message, Fault)), fault)
        except ChannelClosed:
            pass
        if not self._closing.is_set():
            self._report(index, handle, fault)

    def _report(self, index: int, handle: ProcessWorker, fault: Fault | None) -> None:
        how = handle.release()
        obituary = f"tensor-parallel rank {index} ended: {how if fault is None else fault.message}"
        with self._lock:
            if self._lost.is_set():
                return
            self._loss = WorkerDied(obituary)
            self._lost.set()
        _log.error("%s", obituary)
        shutil.rmtree(self._meeting, ignore_errors=True)
        cause = self._loss if fault is None else error_of(replace(fault, message=obituary))
        threading.Thread(target=self._on_loss, args=(cause,), name="ramet-rank-lost", daemon=True).start()


class ParallelExecutor:
    """Implements `Executor` for all ranks: what rank 0 runs the others run too. An error of any step is `WorkerDied`: afterwards the ranks
    would no longer be in the same place."""

    def __init__(self, own: Executor, followers: Followers) -> None:
        self._own, self._followers = own, followers
        self.on_gpu: bool = getattr(own, "on_gpu", False)
        self.host_memory: HostMemory | None = getattr(own, "host_memory", None)

    @property
    def model(self) -> ModelInfo:
        return self._own.model

    @property
    def capacity(self) -> Capacity:
        return self._own.capacity

    def launch(self, plan: BatchPlan) -> None:
        self._followers.tell(RunForward(plan))
        self._own.launch(plan)

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        self._followers.tell(RunSampling())
        return PendingTogether(self._own.sample(plan, masks), self._followers)

    def close(self) -> None:
        self._followers.close()
        self._own.close()


class PendingTogether:
    """Implements `PendingResult`."""

    def __init__(self, own: PendingResult, followers: Followers) -> None:
        self._own, self._followers = own, followers

    def result(self) -> StepResult:
        try:
            return self._own.result()
        except Exception as error:
            raise self._followers.loss_behind(error) from error


def end_with_them(channel: Channel, end: Callable[[], None] | None, error: RametError) -> None:
    """What rank 0's process does when another rank is lost. Its worker ends by itself at its next step; where none comes, or where it waits
    for the device, this ends it. `end` ends the process; None: the worker is a thread of the front."""
    if end is not None:
        time.sleep(_GRACE_SECONDS)
        say_last_words(channel, fault_of(error))
        end()
