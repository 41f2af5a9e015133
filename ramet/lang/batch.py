"""Many runs of one program on one loop: bounded concurrency, results in order, one failure cancels the rest (unless asked not to)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ramet.errors import InvalidRequest
from ramet.lang.progress import Progress, progress_bar
from ramet.lang.result import ProgramState
from ramet.lang.runner import wait_for
from ramet.lang.streaming import DONE, next_or_done

RunOne = Callable[[Any], Coroutine[Any, Any, ProgramState]]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """`num_threads` is SGLang's name for how many runs are alive at once ("auto": max(96, 16 × cores)); there are no threads."""

    num_threads: int | str = "auto"
    progress_bar: bool = False
    generator_style: bool = False
    return_exceptions: bool = False

    @property
    def concurrency(self) -> int:
        if self.num_threads == "auto":
            return max(96, 16 * (os.cpu_count() or 1))
        if isinstance(self.num_threads, str) or self.num_threads < 1:
            raise InvalidRequest(f"num_threads must be 1 or more, or 'auto', got {self.num_threads!r}", param="num_threads")
        return self.num_threads


BATCH_KEYWORDS = tuple(BatchOptions.__dataclass_fields__)


async def results_in_order(items: Sequence[Any], run_one: RunOne, options: BatchOptions) -> AsyncIterator[Any]:
    """Each item's result, in the order of the items, as soon as it and those before it are there."""
    slots = asyncio.Semaphore(options.concurrency)
    bar = progress_bar(len(items), shown=options.progress_bar)
    tasks = [asyncio.create_task(_guarded(item, run_one, slots, bar)) for item in items]
    try:
        for task in tasks:
            if options.return_exceptions:
                await asyncio.wait([task])
                yield task.exception() or task.result()
            else:
                yield await _first_failure_wins(task, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        bar.close()


async def _first_failure_wins(wanted: asyncio.Task[ProgramState], tasks: Sequence[asyncio.Task[ProgramState]]) -> ProgramState:
    """Wait for `wanted`, but not on when another run has failed meanwhile."""
    if not wanted.done():
        watched = [task for task in tasks if not task.done()]
        gathered = asyncio.gather(*watched)
        gathered.add_done_callback(lambda future: future.cancelled() or future.exception())
        waiting: list[asyncio.Future[Any]] = [wanted, gathered]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if gathered.done():
            gathered.result()
    return wanted.result()


async def _guarded(item: Any, run_one: RunOne, slots: asyncio.Semaphore, bar: Progress) -> ProgramState:
    async with slots:
        result = await run_one(item)
    bar.update(1)
    return result


def call_arguments(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One element of `batch_kwargs`: a dict of arguments, or a tuple or list of positional ones."""
    if isinstance(item, Mapping):
        return (), dict(item)
    if isinstance(item, tuple | list):
        return tuple(item), {}
    raise InvalidRequest(f"run_batch takes dicts of arguments (or tuples of positional ones), got {type(item).__name__}: {item!r:.60}")


def pulled(loop: asyncio.AbstractEventLoop, results: AsyncIterator[Any]) -> Iterator[Any]:
    """An async iterator of `loop`, for sync code."""
    try:
        while (result := wait_for(loop, lambda: next_or_done(results))) is not DONE:
            yield result
    finally:
        wait_for(loop, results.aclose)  # type: ignore[attr-defined]
