"""Latency and throughput of the variants of one program, in alternating runs: what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ramet as sgl
from benchmarks.programs.workloads import TOPICS, Workload

SHORT_SECONDS = 0.3
STRIDE = len(TOPICS) * 1000


@dataclass(frozen=True, slots=True)
class Variant:
    """`alone`: only its latency is of interest."""

    name: str
    program: sgl.Function
    mode: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds of every variant, and of one that is short, so that its ratios tell 0.9 from 1.1; programs at once for the throughput."""

    runs: int
    short_runs: int
    together: int


async def measure(
    workload: Workload, variants: Sequence[Variant], endpoint: sgl.RuntimeEndpoint, direct: sgl.RuntimeEndpoint, effort: Effort
) -> list[dict[str, Any]]:
    """One cell per variant. Everyone runs once before, unmeasured: registration, connections, the program's constant beginning."""
    await direct.flush_cache()
    for place, variant in enumerate(variants):
        await variant.program.arun(**arguments(workload, place, 99), **_options(variant, endpoint))

    async def alone(place: int, index: int) -> None:
        await variants[place].program.arun(**arguments(workload, place, index), **_options(variants[place], endpoint))

    async def together(place: int, index: int) -> None:
        calls = [arguments(workload, place, 100 + index * effort.together + each) for each in range(effort.together)]
        await variants[place].program.arun_batch(calls, **_options(variants[place], endpoint))

    times = await _alternating(list(range(len(variants))), alone, effort.runs, effort.short_runs)
    measured = [place for place, variant in enumerate(variants) if not variant.alone]
    batches = await _alternating(measured, together, 1, effort.short_runs)
    return [_cell(variant, times[place], batches.get(place, []), effort) for place, variant in enumerate(variants)]


async def _alternating(
    places: Sequence[int], run: Callable[[int, int], Awaitable[None]], runs: int, short_runs: int
) -> dict[int, list[float]]:
    """Rounds in which every variant has its turn, each round beginning with another one; more of them where the first one was short."""
    times: dict[int, list[float]] = {place: [] for place in places}
    index = 0
    while index < runs:
        for place in [*places[index % len(places) :], *places[: index % len(places)]]:
            began = time.perf_counter()
            await run(place, index)
            times[place].append(time.perf_counter() - began)
        if index == 0 and statistics.median(own[0] for own in times.values()) < SHORT_SECONDS:
            runs = max(runs, short_runs)
        index += 1
    return times


def arguments(workload: Workload, place: int, index: int) -> Any:
    """The same topics for every variant, but no prompt twice: only what is constant in the program is shared."""
    return workload.arguments(STRIDE * (place + 1) + index)


def _options(variant: Variant, endpoint: sgl.RuntimeEndpoint) -> dict[str, Any]:
    return {"backend": endpoint, "mode": variant.mode, "temperature": 0}


def _cell(variant: Variant, times: Sequence[float], batches: Sequence[float], effort: Effort) -> dict[str, Any]:
    return {
        "variant": variant.name,
        "latency_s": statistics.median(times),
        "latencies_s": list(times),
        "programs_per_s": effort.together / statistics.median(batches) if batches else 0.0,
        "batches_s": list(batches),
    }


def compared(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """How many times shorter ours are: the median of the rounds' ratios, and the bounds of their middle half."""
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high
