"""Programs per second and hit rate where KV is scarce: what the compiler knows (kv_liveness) against LRU and against Bélády's oracle.

    python -m benchmarks.cache_pressure [--output DIR] [--sizes 0.1 0.2 …] [--workloads react …] [--programs N]

The pool is a share of the working set: of what all live programs together hold at the peak, running and paused, in a run that has room for
everything. Time is virtual (`virtual_engine.py`): the programs are compiled and interpreted for real, and scheduled for real.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache_pressure.oracle import ClairvoyantCache
from benchmarks.cache_pressure.plot import sweep_plot
from benchmarks.cache_pressure.virtual_engine import CostModel, VirtualEngine, run_in_virtual_time, second_tier
from benchmarks.cache_pressure.workloads import WORKLOADS, Workload
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.config import MemoryConfig, ScheduleConfig
from ramet.runtime.engine.program_backend import EngineBackend

SIZES = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
ROOMY = 1 << 20
MAX_RUNNING = 32
PIN_SHARE = MemoryConfig().kv_pin_share
HOST_POOLS = 4.0


@dataclass(frozen=True)
class Variant:
    """`host`: host memory of a second tier, in pools."""

    name: str
    eviction: str
    policy: str
    host: float = 0.0


VARIANTS = (
    Variant("lru", "lru", "lpm"),
    Variant("lru, program order", "lru", "program"),
    Variant("oracle", "oracle", "program"),
    Variant("kv_liveness", "next-use", "program"),
    Variant("lru, second tier", "lru", "lpm", host=HOST_POOLS),
    Variant("kv_liveness, second tier", "next-use", "program", host=HOST_POOLS),
)
ROOMY_VARIANT = VARIANTS[3]


@dataclass(frozen=True)
class Outcome:
    seconds: float
    hit_rate: float
    prefill_tokens: int
    retractions: int
    peak_needed: int
    prompts: list[tuple[float, bytes]]
    steps: int


def measure(workload: Workload, variant: Variant, num_pages: int, programs: int, future: list[tuple[float, bytes]]) -> Outcome:
    return run_in_virtual_time(_measure(workload, variant, num_pages, programs, future))


async def _measure(workload: Workload, variant: Variant, num_pages: int, programs: int, future: list[tuple[float, bytes]]) -> Outcome:
    schedule = ScheduleConfig(chunked_prefill_size=2048, max_running_requests=MAX_RUNNING, schedule_policy=variant.policy)
    oracle = ClairvoyantCache(num_pages, future) if variant.eviction == "oracle" else None
    costs = CostModel()
    tier = second_tier(int(variant.host * num_pages), costs) if variant.host else None
    cache = oracle or PrefixCache(num_pages, 1, variant.eviction, tier)
    engine = VirtualEngine(cache, num_pages, costs, schedule, MemoryConfig(kv_pin_share=1.0 if num_pages == ROOMY else PIN_SHARE))
    if oracle is not None:
        engine.on_prompt = oracle.note
    backend, turns = EngineBackend(engine), asyncio.Semaphore(workload.live)  # type: ignore[arg-type]

    async def one(index: int) -> None:
        async with turns:
            await workload.program.arun(workload.argument(index), backend=backend, temperature=0, mode="compiled")

    await asyncio.gather(*(one(index) for index in range(programs)))
    seconds, counters = asyncio.get_running_loop().time(), engine.scheduler.counters
    await engine.close()
    rate = counters.cached_tokens / counters.prompt_tokens
    return Outcome(seconds, rate, counters.prefill_tokens, counters.retractions, engine.peak_needed, engine.prompts, counters.steps)


@dataclass(frozen=True)
class Reference:
    """A workload with room for everything."""

    workload: Workload
    outcome: Outcome

    @classmethod
    def of(cls, workload: Workload, programs: int) -> Reference:
        found = measure(workload, ROOMY_VARIANT, ROOMY, programs, [])
        print(f"{workload.name}: {programs} programs, {workload.live} alive at once; working set {found.peak_needed} tokens; with room for")
        print(f"everything {programs / found.seconds:.2f} programs/s, hit rate {100 * found.hit_rate:.1f} %", flush=True)
        return cls(workload, found)

    def cells(self, size: float, programs: int) -> Iterator[dict[str, Any]]:
        """One per variant, in a pool of `size` working sets."""
        for variant in VARIANTS:
            found = measure(self.workload, variant, int(size * self.outcome.peak_needed), programs, self.outcome.prompts)
            yield {
                "workload": self.workload.name,
                "pool": size,
                "variant": variant.name,
                "programs_per_s": round(programs / found.seconds, 4),
                "hit_rate": round(found.hit_rate, 4),
                "best_hit_rate": round(self.outcome.hit_rate, 4),
                "prefill_tokens": found.prefill_tokens,
                "retractions": found.retractions,
                "steps": found.steps,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="where cache_pressure.json and cache_pressure.svg go")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--workloads", nargs="+", default=[each.name for each in WORKLOADS])
    parser.add_argument("--programs", type=int, default=96)
    options = parser.parse_args()
    references = [Reference.of(each, options.programs) for each in WORKLOADS if each.name in options.workloads]
    cells: list[dict[str, Any]] = []
    for size in options.sizes:
        for reference in references:
            for cell in reference.cells(size, options.programs):
                cells.append(cell)
                show(cell)
                if options.output is not None:
                    write(options.output, cells)


def show(cell: Mapping[str, Any]) -> None:
    print(
        f"{100 * cell['pool']:4.0f} %  {cell['workload']:16} {cell['variant']:25} {cell['programs_per_s']:8.3f} programs/s  "
        f"hit rate {100 * cell['hit_rate']:5.1f} %  {cell['prefill_tokens']:8} computed  {cell['steps']:5} steps",
        flush=True,
    )


def write(folder: Path, cells: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cache_pressure.json").write_text(json.dumps(cells, indent=1) + "\n")
    (folder / "cache_pressure.svg").write_text(sweep_plot(cells))


if __name__ == "__main__":
    main()
