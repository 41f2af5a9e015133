"""Several generations as one stream, or as one list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from ramet.runtime.engine.native_format import error_of
from ramet.runtime.request import Delta, FinishKind, Generation
from ramet.server.server_context import ServerContext

_Item = tuple[int, Delta | BaseException | None]


async def fan_out(
    context: ServerContext, generations: Sequence[Generation], *, pass_aborts: bool = False
) -> AsyncGenerator[tuple[int, Delta], None]:
    """Run all generations at once and yield (position, delta) as they come.

    An error finish is raised, an abort too unless `pass_aborts`. The first failure, and closing this generator, aborts the others.
    """
    if len(generations) == 1:
        async with aclosing(context.generate(generations[0])) as only:
            async for delta in only:
                yield 0, _checked(delta, pass_aborts)
        return
    queue: asyncio.Queue[_Item] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(context, generation, index, queue)) for index, generation in enumerate(generations)]
    try:
        num_open = len(pumps)
        while num_open:
            index, item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield index, _checked(item, pass_aborts)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def collect(context: ServerContext, generations: Sequence[Generation], *, pass_aborts: bool = False) -> list[Delta]:
    """Run all generations to their end, each as one whole delta; the first failure aborts the others."""
    tasks = [asyncio.ensure_future(context.complete(generation)) for generation in generations]
    try:
        return [_checked(whole, pass_aborts) for whole in await asyncio.gather(*tasks)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(context: ServerContext, generation: Generation, index: int, queue: asyncio.Queue[_Item]) -> None:
    try:
        async with aclosing(context.generate(generation)) as deltas:
            async for delta in deltas:
                queue.put_nowait((index, delta))
        queue.put_nowait((index, None))
    except Exception as error:
        queue.put_nowait((index, error))


def _checked(delta: Delta, pass_aborts: bool) -> Delta:
    finish = delta.finish
    if finish is not None and (finish.kind is FinishKind.ERROR or (finish.kind is FinishKind.ABORT and not pass_aborts)):
        raise error_of(finish)
    return delta
