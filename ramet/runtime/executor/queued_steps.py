"""Steps of a runner in a thread, in the order of their `launch`. No torch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, Protocol, TypeVar

from ramet.errors import InternalError
from ramet.runtime.executor.executor import PendingResult
from ramet.runtime.plan import BatchPlan, TokenMasks

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Runner(Protocol[R_co]):
    """The two halves of a step, for one thread only."""

    def forward(self, plan: BatchPlan) -> None: ...

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> R_co: ...


class QueuedSteps(Generic[R]):
    """Implements `executor.Steps`. Several may share the one thread of `thread`. `around` is entered for each half, `pending` made of what
    `sample` will bring."""

    def __init__(
        self,
        runner: Runner[R],
        thread: ThreadPoolExecutor,
        pending: Callable[[Future[R]], PendingResult],
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._runner: Runner[R] | None = runner
        self._thread, self._pending, self._around = thread, pending, around
        self._forward: Future[None] | None = None

    def launch(self, plan: BatchPlan) -> None:
        self._forward = self._thread.submit(self._run_forward, plan)

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        forward, self._forward = self._forward, None
        if forward is None:
            raise InternalError("sample() without launch(): every step needs both, in this order")
        return self._pending(self._thread.submit(self._run_sample, plan, masks, forward))

    def forget(self) -> None:
        """Let go of what the runner holds."""
        self._runner = None

    def _run_forward(self, plan: BatchPlan) -> None:
        assert self._runner is not None
        with self._around():
            self._runner.forward(plan)

    def _run_sample(self, plan: BatchPlan, masks: TokenMasks | None, forward: Future[None]) -> R:
        forward.result()  # has run: this thread took it first. Raises what it raised
        assert self._runner is not None
        with self._around():
            return self._runner.sample(plan, masks)
