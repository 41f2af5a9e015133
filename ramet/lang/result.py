"""What a run gives back."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

from ramet.errors import Cancelled
from ramet.lang.runner import on_loop, wait_for
from ramet.lang.streaming import DONE, next_or_done
from ramet.lang.track import Track
from ramet.program.timeline import span_to_json

CANCELLED = "this run was cancelled"


class ProgramState:
    """A program that has run, or (with `stream=True`) still runs. Reading waits; a failure of the program is raised by whoever reads.
    Dropping a running one cancels it."""

    def __init__(self, track: Track, task: asyncio.Task[Any]) -> None:
        self._track, self._task = track, task
        self._loop = track.run.loop
        self._drop = weakref.finalize(self, _cancel_soon, self._loop, task)

    @property
    def value(self) -> Any:
        """What the function returned."""
        self.sync()
        return self._outcome()

    @property
    def ret_value(self) -> Any:
        """SGLang's name of `value`."""
        return self.value

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: object) -> bool:
        self.sync()
        return isinstance(name, str) and name in self._track.variables

    def get_var(self, name: str) -> Any:
        if self._track.ready(name):
            return self._track.variables[name]
        return wait_for(self._loop, lambda: self._value(name))

    async def aget_var(self, name: str) -> Any:
        return await on_loop(self._loop, lambda: self._value(name))

    async def _value(self, name: str) -> Any:
        if self._done:
            self._outcome()
        try:
            return await self._track.value(name, lambda: self._done)
        except Cancelled:
            await self._ended()
            raise

    def set_var(self, name: str, value: Any) -> None:
        """On a finished result: a note of the caller's own, beside what the program wrote."""
        self.sync()
        self._track.variables[name] = value

    def text(self) -> str:
        """The transcript, in the model's own chat format."""
        self.sync()
        return self._track.text()

    def messages(self) -> list[dict[str, str]]:
        self.sync()
        return self._track.conversation.messages()

    def variables(self) -> dict[str, Any]:
        """Every variable by name."""
        self.sync()
        return {name: self._track.variables[name] for name in self._track.names()}

    def get_meta_info(self, name: str) -> dict[str, Any]:
        """What the server said about the generation: finish_reason, token counts, cached_tokens, logprobs; for a select its scores."""
        self.get_var(name)
        if name not in self._track.meta:
            raise KeyError(f"variable {name!r} was not generated, so it has no meta info")
        return self._track.meta[name]

    @property
    def run_id(self) -> str:
        """The id of this run on the server that executes it, for `ramet trace`; empty where it runs in this process."""
        return self._track.run.server_id

    def spans(self) -> list[dict[str, Any]]:
        """What a compiled run spent its time on, as in a trace of the server (where it must have been asked for, by explain())."""
        self.sync()
        run = self._track.run
        if run.server_spans is not None:
            return run.server_spans
        return [] if run.timeline is None else [span_to_json(span) for span in run.timeline.spans]

    def sync(self) -> None:
        """Wait for the program's end; raise what it raised."""
        if not self._done:
            wait_for(self._loop, self._ended)
        self._outcome()

    def error(self) -> BaseException | None:
        """What the program failed with, or None."""
        if not self._done:
            wait_for(self._loop, self._settled)
        return Cancelled(CANCELLED) if self._task.cancelled() else self._task.exception()

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """New text as it is generated: of one variable, or the whole transcript up to the program's end."""
        stream = self._pieces(var_name, return_meta_data=False)
        while (piece := wait_for(self._loop, lambda: next_or_done(stream))) is not DONE:
            yield piece

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """`text_iter`, awaited. With `return_meta_data`, pairs of a variable's new text and what is known of it by then; the last pair
        brings the whole meta info (also the logprobs) and no more text. Any event loop may read,
        also one from which `run(stream=True)` was called."""
        stream = self._pieces(var_name, return_meta_data)
        while (piece := await on_loop(self._loop, lambda: next_or_done(stream))) is not DONE:
            yield piece

    async def _pieces(self, var_name: str | None, return_meta_data: bool) -> AsyncIterator[Any]:
        try:
            async for piece in self._track.stream(var_name, lambda: self._done):
                yield (piece, self._track.meta.get(var_name, {})) if return_meta_data and var_name is not None else piece
            if return_meta_data and var_name is not None:
                yield "", self._track.meta.get(var_name, {})
        except Cancelled:
            await self._ended()
            raise
        except KeyError:
            if self._done:
                self._outcome()  # why the run never came to set it
            raise
        if self._done:
            self._outcome()

    def cancel(self) -> None:
        """Stop the program; what it generates is aborted at the backend."""
        _cancel_soon(self._loop, self._task)

    def __await__(self) -> Generator[Any, None, ProgramState]:
        """`await result`: wait for the program's end."""
        yield from on_loop(self._loop, self._ended).__await__()
        return self

    @property
    def _done(self) -> bool:
        return self._task.done()

    def _outcome(self) -> Any:
        """The function's value, or why there is none. (A failed body cancels its tracks: this is the cause, not that.)"""
        if self._task.cancelled():
            raise Cancelled(CANCELLED)
        return self._task.result()

    async def _ended(self) -> None:
        await self._settled()
        self._outcome()

    async def _settled(self) -> None:
        await asyncio.wait([self._task])

    def __repr__(self) -> str:
        condition = "running" if not self._done else "failed" if self.error() else "done"
        return f"<ProgramState {condition}: {', '.join(self._track.names()) or 'no variables'}>"


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    if not task.done() and not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)
