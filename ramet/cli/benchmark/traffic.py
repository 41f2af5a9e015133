"""When requests are sent: a Poisson process or all at once, under an optional bound on concurrency."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Sequence

from ramet.cli.benchmark.targets import Outcome
from ramet.cli.benchmark.workloads import BenchRequest

Send = Callable[[BenchRequest], Awaitable[Outcome]]


async def drive(
    requests: Sequence[BenchRequest],
    send: Send,
    *,
    request_rate: float = math.inf,
    max_concurrency: int | None = None,
    seed: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Outcomes in the order of `requests`. Under a concurrency bound a request's clock starts when it is let through."""
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    rng = random.Random(seed)

    async def gated(request: BenchRequest) -> Outcome:
        async with gate:
            outcome = await send(request)
        progress()
        return outcome

    tasks: list[asyncio.Task[Outcome]] = []
    for request in requests:
        tasks.append(asyncio.create_task(gated(request)))
        if request_rate != math.inf:
            await asyncio.sleep(rng.expovariate(request_rate))
    return list(await asyncio.gather(*tasks))
