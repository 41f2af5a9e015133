"""From a program and its options to a running task: backend, chat format, deadline, and the end of every generation it started."""

from __future__ import annotations

import asyncio
from typing import Any

from ramet.errors import DeadlineExceeded
from ramet.lang.options import Mode, RunOptions
from ramet.lang.process import current_backend
from ramet.lang.result import ProgramState
from ramet.lang.run import Run
from ramet.lang.strategy import Program, choose_strategy
from ramet.lang.track import Track


async def start(program: Program, options: RunOptions, mode: Mode, *, live: bool = True) -> ProgramState:
    """Begin a run on the running loop; the result streams if it is `live`."""
    backend = current_backend(options.backend)
    run = Run(backend, options.sampling, options.logprobs, live=live, timeout=options.timeout)
    run.concurrency, run.traced = options.concurrency, options.traced
    root = run.open_track()
    task = asyncio.create_task(_execute(program, root, options.mode or mode), name=program.name)
    task.add_done_callback(_retrieve)
    return ProgramState(root, task)


async def run_to_end(program: Program, options: RunOptions, mode: Mode) -> ProgramState:
    """Run, and raise what the program raises. Cancelling the caller cancels the run."""
    state = await start(program, options, mode, live=False)
    try:
        await state
    except asyncio.CancelledError:
        state.cancel()
        await state._settled()
        raise
    return state


async def _execute(program: Program, root: Track, mode: Mode) -> Any:
    run = root.run
    run.clock = deadline = asyncio.timeout(None)
    try:
        async with deadline:
            if run.concurrency is None:  # else once it has its turn
                run.start_clock()
            value = await choose_strategy(program, mode, run.backend).execute(program, root)
            await run.settle()
            return value
    except TimeoutError:
        if not deadline.expired():
            raise
        raise DeadlineExceeded(
            f"{program.name} did not end within its timeout of {run.timeout:g} s; what it generated was aborted"
        ) from None
    finally:
        await run.cancel()
        run.end()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """The failure belongs to whoever reads the result; the loop need not log it as lost."""
    if not task.cancelled():
        task.exception()
