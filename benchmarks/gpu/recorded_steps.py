"""Where the time of an offline run goes: every step's size, device time and the time until the next result, by burst of work.

    RAMET_STEP_LOG=steps.jsonl python peer_workloads.py --engine ours --ours benchmarks.gpu.recorded_steps:make_engine …
    python benchmarks/gpu/recorded_steps.py steps.jsonl

`device` is what the kernels of the steps took, `wall` what passed between results; what lies between the two is idle, or waiting.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu.peer_factory import PeerEngine
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.executor import Executor, PendingResult
from ramet.runtime.executor.torch_executor import create_executor as create_torch_executor
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, StepResult, TokenMasks

_IDLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Times in seconds; `planned` is when the step was launched, `done` when its result had come."""

    rows: int
    tokens: int
    masks: int
    planned: float
    done: float
    device: float


class RecordedExecutor:
    """Implements `Executor` over another one."""

    on_gpu = True

    def __init__(self, executor: Executor, path: Path) -> None:
        self._executor, self._path = executor, path
        self._launched = 0.0
        self.records: list[StepRecord] = []

    @property
    def model(self) -> ModelInfo:
        return self._executor.model

    @property
    def capacity(self) -> Capacity:
        return self._executor.capacity

    def launch(self, plan: BatchPlan) -> None:
        self._launched = time.perf_counter()
        self._executor.launch(plan)

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        return _Recorded(self, plan, self._launched, self._executor.sample(plan, masks))

    def close(self) -> None:
        self.write()
        self._executor.close()

    def write(self) -> None:
        with self._path.open("a") as file:
            file.writelines(json.dumps(asdict(record)) + "\n" for record in self.records)
        self.records.clear()


class _Recorded:
    def __init__(self, owner: RecordedExecutor, plan: BatchPlan, launched: float, pending: PendingResult) -> None:
        self._owner, self._plan, self._launched, self._pending = owner, plan, launched, pending

    def result(self) -> StepResult:
        result = self._pending.result()
        now, plan = time.perf_counter(), self._plan
        self._owner.records.append(StepRecord(len(plan.rows), plan.num_tokens, plan.num_masks, self._launched, now, result.seconds))
        if len(self._owner.records) >= 64:
            self._owner.write()
        return result


def create_executor(config: EngineConfig) -> RecordedExecutor:
    return RecordedExecutor(create_torch_executor(config), Path(os.environ["RAMET_STEP_LOG"]))


def make_engine(model_dir: str, args: Namespace) -> PeerEngine:
    return PeerEngine(
        model_dir, with_text=args.w5, extra=json.loads(args.extra), executor_factory="benchmarks.gpu.recorded_steps:create_executor"
    )


def bursts(records: list[StepRecord]) -> list[list[StepRecord]]:
    """Steps that follow each other without a pause."""
    found: list[list[StepRecord]] = []
    for record in records:
        if not found or record.planned - found[-1][-1].done > _IDLE_SECONDS:
            found.append([])
        found[-1].append(record)
    return found


def report(burst: list[StepRecord]) -> None:
    """One line for the burst, and one for each kind of step in it."""
    wall, device = burst[-1].done - burst[0].planned, sum(record.device for record in burst)
    print(f"{len(burst)} steps, {sum(r.tokens for r in burst)} tokens: wall {wall:.3f} s, device {device:.3f} s")
    kinds: dict[tuple[str, int], list[tuple[StepRecord, float]]] = defaultdict(list)
    before = burst[0].planned
    for record in burst:
        kind = "decode" if record.tokens == record.rows else "masked" if record.masks else "prefill"
        size = record.rows if kind != "prefill" else record.tokens
        kinds[kind, 1 << max(size - 1, 0).bit_length()].append((record, record.done - before))
        before = record.done
    for (kind, size), parts in sorted(kinds.items()):
        count, tokens = len(parts), sum(record.tokens for record, _ in parts)
        times = sum(record.device for record, _ in parts), sum(seconds for _, seconds in parts)
        print(
            f"    {kind:7} ≤{size:6}: {count:4} steps, {tokens:7} tokens, device {times[0]:7.3f} s ({times[0] / count * 1e3:7.2f} ms), "
            f"wall {times[1]:7.3f} s ({times[1] / count * 1e3:7.2f} ms)"
        )


def main() -> None:
    lines = Path(sys.argv[1]).read_text().splitlines()
    for burst in bursts([StepRecord(**json.loads(line)) for line in lines]):
        if len(burst) > 2:
            report(burst)


if __name__ == "__main__":
    main()
