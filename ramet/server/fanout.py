"""Several generations as one stream, and the memory of what each has said so far."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from ramet.runtime.request import Delta, FinishKind, Generation, TokenLogprob
from ramet.server.context import ServerContext
from ramet.server.error_responses import error_of

_Item = tuple[int, Delta | BaseException | None]


@dataclass(slots=True)
class Transcript:
    """A generation so far: the joined deltas, and the last of them for its counters and finish."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Delta = field(default_factory=lambda: Delta(request_id=""))

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.last = delta


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


async def collect(context: ServerContext, generations: Sequence[Generation], *, pass_aborts: bool = False) -> list[Transcript]:
    """Run all generations to their end; the first failure aborts the others."""
    tasks = [asyncio.ensure_future(context.complete(generation)) for generation in generations]
    transcripts = [Transcript() for _ in generations]
    try:
        for transcript, whole in zip(transcripts, await asyncio.gather(*tasks), strict=True):
            transcript.add(_checked(whole, pass_aborts))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return transcripts


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
