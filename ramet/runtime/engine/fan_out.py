"""Several generations at once. The first that fails ends the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.native_format import error_of
from ramet.runtime.request import Delta, FinishKind, Generation

_News = tuple[int, Delta | BaseException | None]


async def complete_all(engine: AsyncEngine, generations: Sequence[Generation]) -> list[Delta]:
    """Every generation whole, in order. An error finish is raised as its exception; an abort is a result like any other."""
    if len(generations) == 1:
        return [checked(await engine.complete(generations[0]))]  # without a task
    tasks = [asyncio.ensure_future(engine.complete(generation)) for generation in generations]
    try:
        for finished in asyncio.as_completed(tasks):
            checked(await finished)
        return [task.result() for task in tasks]
    finally:
        await _cancelled(tasks)


async def stream_all(engine: AsyncEngine, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Delta], None]:
    """(position, delta) as they come. Closing it aborts what still runs."""
    news: asyncio.Queue[_News] = asyncio.Queue()
    pumps = [asyncio.ensure_future(_pump(engine, generation, index, news)) for index, generation in enumerate(generations)]
    try:
        num_open = len(pumps)
        while num_open:
            index, item = await news.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield index, checked(item)
    finally:
        await _cancelled(pumps)


def checked(delta: Delta) -> Delta:
    if delta.finish is not None and delta.finish.kind is FinishKind.ERROR:
        raise error_of(delta.finish)
    return delta


async def _pump(engine: AsyncEngine, generation: Generation, index: int, news: asyncio.Queue[_News]) -> None:
    try:
        async for delta in engine.generate(generation):
            news.put_nowait((index, delta))
    except Exception as error:
        news.put_nowait((index, error))
    else:
        news.put_nowait((index, None))


async def _cancelled(tasks: Sequence[asyncio.Future[Delta] | asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
