"""Bodies that wait without a thread: a program's body runs in a greenlet, and a blocking read suspends it into the event loop.

`run_body` is the loop's side, `suspend` the body's side. A sync body that reads `s["x"]` hands the awaitable out of its greenlet;
the coroutine that drives it awaits it and switches back with the result. An async body is driven the same way, so it may both
`await` and read. Thousands of bodies wait on one loop in one thread.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from greenlet import getcurrent, greenlet

from ramet.log import get_logger

log = get_logger(__name__)

SLOW_STEP_SECONDS = 0.5
"""A body that computes this long between two waits holds every other program up; the log then says so."""


class _Body(greenlet):
    """A greenlet that can be recognised as one of ours."""


async def run_body(function: Callable[[], Any], name: str) -> Any:
    """Run sync or async `function` to its end, in a task of its own. Cancelling that raises CancelledError inside the body, at its
    wait."""
    body = _Body(lambda: _call(function))
    # The body and its driver share one context, so that what a body awaits sees the context variables that it has set.
    body.gr_context = getcurrent().gr_context
    outcome = _step(body.switch, name)
    while not body.dead:
        try:
            value = await outcome
        except BaseException as error:
            outcome = _step(lambda error=error: body.throw(error), name)  # type: ignore[misc]
        else:
            outcome = _step(lambda value=value: body.switch(value), name)  # type: ignore[misc]
    return outcome


def in_body() -> bool:
    return isinstance(getcurrent(), _Body)


def suspend(awaitable: Awaitable[Any]) -> Any:
    """From inside a body: wait for `awaitable` while the loop goes on."""
    parent = getcurrent().parent
    assert parent is not None, "suspend() outside of a body"
    return parent.switch(awaitable)


def _call(function: Callable[[], Any]) -> Any:
    result = function()
    return _drive(result) if inspect.iscoroutine(result) else result


def _drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine inside the greenlet: what it yields to the loop goes out through `suspend`, unchanged."""
    resume: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731
    try:
        while True:
            yielded = resume()
            try:
                value = suspend(_Relay(yielded))
            except BaseException as error:
                resume = lambda error=error: coroutine.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                resume = lambda value=value: coroutine.send(value)  # type: ignore[misc]  # noqa: E731
    except StopIteration as stop:
        return stop.value


class _Relay:
    """Yields one object of a coroutine (a future, or None) to the task as if the task had yielded it itself."""

    __slots__ = ("_yielded",)

    def __init__(self, yielded: Any) -> None:
        self._yielded = yielded

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self._yielded)


def _step(switch: Callable[[], Any], name: str) -> Any:
    began = time.perf_counter()
    outcome = switch()
    held = time.perf_counter() - began
    if held > SLOW_STEP_SECONDS:
        log.warning("%s held the event loop for %.1f s; run blocking work through sgl.host(function)(...)", name, held)
    return outcome
