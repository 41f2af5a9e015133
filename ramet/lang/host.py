"""Host calls: ordinary Python (tools, HTTP, databases, anything that blocks) from inside a program, without holding up the others."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ramet.lang.bridge import in_body, suspend

P = ParamSpec("P")
R = TypeVar("R")


def host(function: Callable[P, R]) -> Callable[P, R]:
    """`sgl.host(fn)(…)` inside a program: a sync `fn` runs in a pool of threads, an async one on the loop, and only this program waits
    for it. Outside a program `fn` is simply called. Works as a decorator of a tool."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if not in_body():
            return function(*args, **kwargs)
        result: R = suspend(_awaited(function, args, kwargs))
        return result

    called.__ramet_host__ = True  # type: ignore[attr-defined]
    return called


def call(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """`host(function)(*args, **kwargs)`."""
    return host(function)(*args, **kwargs)


async def _awaited(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    result = await asyncio.to_thread(function, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result
