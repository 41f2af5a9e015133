"""Runs of registered programs: one or a batch per request, answered as server-sent events as they happen; host calls, cancel, trace."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ramet.errors import InvalidRequest, QueueFull, RequestNotFound
from ramet.program.budget import Budget
from ramet.runtime.engine.program_backend import EngineBackend
from ramet.server.error_responses import invalid_request_of
from ramet.server.live_run import LiveRun, RunOrder
from ramet.server.openai.reply_schema import ERROR_REPLIES
from ramet.server.program_metrics import ProgramMetrics
from ramet.server.programs import ProgramRegistry, RegisteredProgram
from ramet.server.run_stream import Outlet, RunStream
from ramet.server.server_context import ServerContext
from ramet.wire.plain_values import from_json

router = APIRouter(tags=["programs"])

MAX_BATCH = 10_000
MAX_TRACES = 256
MAX_SPANS = 100_000  # of all traces kept


class RunRequest(BaseModel):
    """Exactly one of `arguments` (one run) and `batch` (a list of them). Values as in `ramet.wire.plain_values`."""

    model_config = ConfigDict(extra="forbid")
    arguments: dict[str, Any] | None = None
    batch: list[dict[str, Any]] | None = Field(None, max_length=MAX_BATCH)
    sampling: dict[str, Any] = Field(default_factory=dict, description="defaults of every gen, with the server's names")
    logprobs: dict[str, Any] = Field(default_factory=dict)
    timeout_s: float | None = Field(None, gt=0, description="seconds for each run; then it fails with deadline_exceeded")
    stream: bool = Field(False, description="events for text, conversation, variables and branches as they happen")
    trace: bool = Field(False, description="the spans with each result")
    concurrency: int | None = Field(None, ge=1, description="runs of this batch alive at once")
    program: str | None = Field(None, description="the program's wire form: registers it first, where its digest is not known")


class LiveRuns:
    """Everything that runs, and the last traces of what has run."""

    def __init__(self, context: ServerContext, registry: ProgramRegistry, max_live: int) -> None:
        self.context, self.registry = context, registry
        self.backend = EngineBackend(context.engine, stream=context.generate, complete=context.complete)
        self.max_live = max_live
        self.slots = asyncio.Semaphore(max_live)
        self.metrics: ProgramMetrics | None = None
        self._live: dict[str, LiveRun] = {}
        self._ended: OrderedDict[str, LiveRun] = OrderedDict()
        self._num_spans = 0  # of the ended ones

    def __len__(self) -> int:
        return len(self._live)

    def get(self, run_id: str) -> LiveRun:
        found = self._live.get(run_id) or self._ended.get(run_id)
        if found is None:
            raise RequestNotFound(f"no run {run_id[:40]!r}; the last {MAX_TRACES} ended ones are kept")
        return found

    async def execute(self, run: LiveRun, outlet: Outlet) -> None:
        """In a slot of its own, in the calling task."""
        async with self.slots:
            self._live[run.id] = run
            try:
                await run.execute(self.backend, outlet)
            finally:
                self._end(run)

    def _end(self, run: LiveRun) -> None:
        del self._live[run.id]
        self._ended[run.id] = run
        self._num_spans += len(run.timeline.spans)
        while len(self._ended) > MAX_TRACES or (len(self._ended) > 1 and self._num_spans > MAX_SPANS):
            self._num_spans -= len(self._ended.popitem(last=False)[1].timeline.spans)
        if self.metrics is not None:
            self.metrics.ended(run.status, run.seconds, run.spent.generations, run.num_host_calls)


def _runs(request: Request) -> LiveRuns:
    """Asked for by hand: FastAPI takes longer to resolve a dependency than a run takes to begin."""
    found: LiveRuns = request.app.state.runs
    return found


@router.post("/v1/programs/{digest}/runs", responses=ERROR_REPLIES)
async def run(digest: str, request: Request) -> Response:
    """Run a program once, or once per element of `batch`. The reply is a stream of events: `started`, `call` (a host call is wanted),
    `done`, `failed`, and with `stream` also `text`, `parts`, `set` and `branch`; `run` is the position in the batch."""
    runs, body = _runs(request), await _body(request)
    orders = _orders(body)
    if body.batch is None and runs.slots.locked():
        raise QueueFull(f"{runs.max_live} program runs are alive, which is the most here (--max-live-runs)", retry_after=1.0)
    if body.program is not None:
        program = await runs.registry.register(runs.context, digest, body.program.encode("utf-8", "surrogatepass"))
    else:
        program = runs.registry.get(digest)
    patient = len(orders) == 1 and not orders[0].stream
    return RunStream(lambda outlet: _execute(runs, program, orders, body.concurrency, outlet), patient=patient)


async def _body(request: Request) -> RunRequest:
    try:
        return RunRequest.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        raise invalid_request_of(error.errors(), RunRequest) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def _orders(body: RunRequest) -> list[RunOrder]:
    if (body.arguments is None) == (body.batch is None):
        raise InvalidRequest("give exactly one of arguments and batch", param="arguments")
    given = [body.arguments] if body.arguments is not None else body.batch or []
    return [
        RunOrder(
            arguments={name: from_json(value) for name, value in arguments.items()},
            sampling=from_json(body.sampling),
            logprobs=from_json(body.logprobs),
            timeout_s=body.timeout_s,
            stream=body.stream,
            trace=body.trace,
        )
        for arguments in given
    ]


async def _execute(runs: LiveRuns, program: RegisteredProgram, orders: list[RunOrder], concurrency: int | None, outlet: Outlet) -> None:
    """All runs of a request. Cancelling this cancels them."""
    limits = runs.context.config.programs
    budget = Budget(steps=limits.run_steps, tokens=limits.run_tokens, forks=limits.run_forks, seconds=limits.run_seconds)
    alive = asyncio.Semaphore(concurrency or max(1, len(orders)))

    async def one(order: RunOrder, index: int) -> None:
        async with alive:
            await runs.execute(LiveRun(program, order, index, budget, host_seconds=limits.host_call_seconds), outlet)

    if len(orders) == 1:  # in this task, which saves it two turns of the loop
        await one(orders[0], 0)
        return
    async with asyncio.TaskGroup() as group:
        for index, order in enumerate(orders):
            group.create_task(one(order, index))


@router.post("/v1/runs/{run_id}/calls/{number}", responses=ERROR_REPLIES)
async def answer(run_id: str, number: int, request: Request) -> dict[str, Any]:
    """The answer to a host call: `{"value": …}`, or `{"error": {"type": …, "message": …}}`, which fails the run."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("an answer is a JSON object")
    _runs(request).get(run_id).answer(number, body)
    return {}


@router.delete("/v1/runs/{run_id}", responses=ERROR_REPLIES)
async def cancel(run_id: str, request: Request) -> dict[str, Any]:
    """Cancel a run at once; its generations are aborted. An ended one stays as it is."""
    found = _runs(request).get(run_id)
    await found.cancel()
    return {"id": run_id, "status": found.status}


@router.get("/v1/runs/{run_id}", responses=ERROR_REPLIES)
async def trace(run_id: str, request: Request) -> Response:
    """The trace of a run: what it spent, and one span per generation, select, host call, prefetch."""
    return JSONResponse(_runs(request).get(run_id).trace())
