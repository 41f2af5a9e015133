"""The heart of the engine: plan → launch → sample → commit, in two loops that do the same calls in another order.

The worker is the only place that holds both the scheduler and the executor. It runs on one thread, in its own process
(`worker_main.py`) or beside the front (`worker_thread.py`), and talks to the front over one channel.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ramet.errors import InternalError, RametError, WorkerDied
from ramet.log import get_logger
from ramet.runtime.engine.channel import Channel, ChannelClosed
from ramet.runtime.engine.messages import (
    Abort,
    ExplainMiss,
    Flush,
    GetStats,
    Hint,
    LookAtCache,
    Message,
    Outputs,
    Ready,
    Reply,
    Shutdown,
    Submit,
)
from ramet.runtime.executor.executor import Executor, PendingResult
from ramet.runtime.plan import BatchPlan, RowResult, StepResult
from ramet.runtime.request import EngineStats, Finish, FinishKind, Request, RequestOutput, SamplingParams
from ramet.runtime.scheduler.scheduler import Scheduler

_log = get_logger(__name__)
_STATS_SECONDS = 1.0
_REST_SECONDS = 0.002  # when there is work but nothing to run yet (a grammar compiles, pages come free next step)
_PROBE_ID = "ramet-probe"
_MAX_PROBE_FAILURES = 2


@dataclass(frozen=True, slots=True)
class Step:
    """A step whose sampling is queued."""

    plan: BatchPlan
    pending: PendingResult


class Worker:
    """Serves requests until `Shutdown`, or until the front is gone.

    A step that raises ends the requests of that step and no others; `WorkerDied` ends the worker. An executor that no longer
    works at all is found out by a request of our own, run when nothing else is left; when that fails twice in a row the worker gives up
    and raises `InternalError`.
    """

    def __init__(
        self, channel: Channel, scheduler: Scheduler, executor: Executor, *, overlap: bool, log_interval: int = 40, cuda_graph: bool = False
    ) -> None:
        self._channel = channel
        self._scheduler = scheduler
        self._executor = executor
        self._overlap = overlap
        self._log_interval = log_interval
        self._cuda_graph = cuda_graph
        self._live: set[str] = set()
        self._failures: dict[str, Finish] = {}
        self._in_doubt = False
        self._probe_failures = 0
        self._stats_due = 0.0

    def run(self) -> None:
        self._channel.send(Ready(self._executor.model, self._executor.capacity))
        try:
            if self._overlap:
                self._run_overlapped()
            else:
                self._run_serial()
        except ChannelClosed:
            _log.info("The front is gone; the worker ends")
        finally:
            self._scheduler.close()
            self._executor.close()

    # The two loops.

    def _run_serial(self) -> None:
        """The slow twin: a step is planned when the one before it has been committed."""
        while self._take_commands(idle=not self._scheduler.has_work):
            plan = self._plan()
            if plan is None:
                self._rest()
                continue
            error = self._launch(plan)
            step = self._sample(plan, error)
            if step is not None:
                self._finish(step)

    def _run_overlapped(self) -> None:
        """Step n+1 is planned and launched while step n runs. Masks of n+1 need the tokens of n, so its sampling is queued only after
        n was committed; the forward pass of n+1 runs meanwhile. Where grammars often force tokens, n is committed first (`JumpRate`)."""
        running: Step | None = None
        while self._take_commands(idle=running is None and not self._scheduler.has_work):
            if running is not None and self._scheduler.wants_results_first:
                self._finish(running)
                running = None
            plan = self._plan()
            error = self._launch(plan) if plan is not None else None
            if running is not None:
                self._finish(running)
            elif plan is None:
                self._rest()
            running = self._sample(plan, error) if plan is not None else None

    # The parts of a step. What raises in one of them ends the requests of its plan (`_fail`).

    def _plan(self) -> BatchPlan | None:
        try:
            return self._scheduler.plan()
        except Exception as error:
            self._fail_all(error)
            return None

    def _launch(self, plan: BatchPlan) -> Exception | None:
        """An error is handed back, not handled: the step before this one must be committed first."""
        try:
            self._executor.launch(plan)
        except Exception as error:
            return error
        return None

    def _sample(self, plan: BatchPlan, launch_error: Exception | None) -> Step | None:
        if launch_error is not None:
            self._fail(plan, launch_error)
            return None
        try:
            masks = self._scheduler.masks(plan)
        except Exception as error:
            with suppress(Exception):  # a launched step must be sampled before the next is launched; nobody reads it
                self._executor.sample(plan, None)
            self._fail(plan, error)
            return None
        try:
            return Step(plan, self._executor.sample(plan, masks))
        except Exception as error:
            self._fail(plan, error)
            return None

    def _finish(self, step: Step) -> None:
        try:
            result = step.pending.result()
        except Exception as error:
            self._fail(step.plan, error)
            return
        self._in_doubt = False
        self._probe_failures = 0
        report = self._scheduler.batch_report(step.plan, self._log_interval)
        self._commit(step.plan, result)
        if report is not None:
            _log.info(report.line(cuda_graph=self._cuda_graph))

    def _commit(self, plan: BatchPlan, result: StepResult) -> None:
        try:
            outputs = self._scheduler.commit(plan, result)
        except Exception as error:
            self._fail_all(error)
            return
        self._emit([*outputs, *self._scheduler.drain()])
        self._scheduler.settle()

    def _rest(self) -> None:
        self._emit(self._scheduler.drain())
        if self._scheduler.has_work:
            time.sleep(_REST_SECONDS)
        elif self._in_doubt:
            self._submit(_probe())

    # Commands from the front.

    def _take_commands(self, *, idle: bool) -> bool:
        """Handle what has arrived; with nothing to do, sleep until something does. False: the front wants us to end."""
        if idle and not self._in_doubt:
            self._emit(self._scheduler.drain())
            messages = self._channel.receive(None)
        else:
            messages = self._channel.receive(0.0)
        return all([self._handle(message) for message in messages])  # noqa: C419 (handle every one)

    def _handle(self, message: Message) -> bool:
        match message:
            case Submit(requests):
                for request in requests:
                    self._submit(request)
            case Abort(None):
                self._scheduler.abort_all()
            case Abort(request_ids):
                for request_id in request_ids or ():
                    self._scheduler.abort(request_id)
            case Hint(hint):
                self._scheduler.hint(hint)
            case Flush(call_id):
                self._channel.send(Reply(call_id, done=self._scheduler.flush_cache()))
            case GetStats(call_id):
                self._channel.send(Reply(call_id, stats=self._stats()))
            case LookAtCache(call_id, max_nodes):
                self._channel.send(Reply(call_id, cache=self._scheduler.cache_view(max_nodes)))
            case ExplainMiss(call_id, request_id):
                self._channel.send(Reply(call_id, lookup=self._scheduler.explain(request_id)))
            case Shutdown():
                return False
        return True

    def _submit(self, request: Request) -> None:
        self._live.add(request.request_id)
        try:
            self._scheduler.add(request)
        except Exception as error:
            self._emit([RequestOutput(request.request_id, finish=_finish_of(error))])

    # What the front hears.

    def _emit(self, outputs: Sequence[RequestOutput]) -> None:
        if self._failures:
            outputs = [self._as_failed(output) for output in outputs]
        self._live.difference_update(output.request_id for output in outputs if output.finish is not None)
        outputs = tuple(output for output in outputs if output.request_id != _PROBE_ID)
        now = time.monotonic()
        stats = self._stats() if now >= self._stats_due else None
        if outputs or stats is not None:
            self._channel.send(Outputs(outputs, stats))
        if stats is not None:
            self._stats_due = now + _STATS_SECONDS

    def _stats(self) -> EngineStats:
        model, capacity = self._executor.model, self._executor.capacity
        pool_bytes = capacity.num_tokens * model.kv_bytes_per_token
        return replace(self._scheduler.stats(), weight_bytes=model.weight_bytes, kv_pool_bytes=pool_bytes, resident_bytes=resident_bytes())

    # Failures.

    def _fail(self, plan: BatchPlan, error: Exception) -> None:
        """End the requests of a plan that did not run: aborted at the scheduler, and told to the front as an error."""
        if isinstance(error, WorkerDied):
            raise error
        _log.error("Step %d failed; its %d requests end with an error", plan.step, len(plan.rows), exc_info=error)
        self._in_doubt = True
        self._count_probe_failure(plan, error)
        for row in plan.rows:
            if self._scheduler.abort(row.request_id):
                self._failures[row.request_id] = _finish_of(error)
        self._commit(plan, StepResult(tuple(RowResult() for _ in plan.rows), ran=False))

    def _fail_all(self, error: Exception) -> None:
        """The scheduler itself raised: nobody knows whose fault it is."""
        _log.error("Scheduling failed; all %d requests end with an error", len(self._live), exc_info=error)
        self._scheduler.abort_all()
        self._scheduler.drain()
        self._failures.clear()
        finish = _finish_of(error)
        self._emit([RequestOutput(request_id, finish=finish) for request_id in sorted(self._live)])

    def _as_failed(self, output: RequestOutput) -> RequestOutput:
        if output.finish is None:
            return output
        finish = self._failures.pop(output.request_id, output.finish)
        return output._replace(finish=finish)

    def _count_probe_failure(self, plan: BatchPlan, error: Exception) -> None:
        if plan.rows and all(row.request_id == _PROBE_ID for row in plan.rows):
            self._probe_failures += 1
            if self._probe_failures >= _MAX_PROBE_FAILURES:
                raise InternalError(f"the executor fails even on a request of one token: {error}") from error


def resident_bytes() -> int:
    """Memory that this process occupies now; 0 where the system does not say. Pages of a KV pool on the CPU count from their first use."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * mmap.PAGESIZE


def _probe() -> Request:
    sampling = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
    return Request(request_id=_PROBE_ID, prompt_ids=(0,), sampling=sampling, seed=0, cache_namespace=_PROBE_ID)


def _finish_of(error: Exception) -> Finish:
    if isinstance(error, RametError):
        return Finish(FinishKind.ERROR, message=error.message, status=error.status, code=error.code or error.kind)
    message = f"the step failed: {type(error).__name__}: {error}"
    return Finish(FinishKind.ERROR, message=message, status=500, code="step_failed")
