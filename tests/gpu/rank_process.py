"""One tensor-parallel rank as a process: `python -m tests.gpu.rank_process INDEX SIZE MEETING MODELS ONLY OPTIONS OUT`.

Runs the same plans on every model directory under MODELS that matches ONLY, one after the other, and writes what rank 0 says to OUT.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path

import msgspec

from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.executor import Rank
from ramet.runtime.executor.torch_executor import TorchExecutor, create_executor
from ramet.runtime.plan import RowResult
from tests.runtime.executor.rank_plans import steps


def main(index: int, size: int, meeting: Path, models: Path, only: str, options: str, out: Path) -> None:
    faulthandler.dump_traceback_later(80)
    answers: dict[str, list[tuple[RowResult, ...]]] = {}
    executors: list[TorchExecutor] = []  # kept to the end: no rank's library waits for another's to unload
    for directory in sorted(models.glob(only)):
        (meeting / directory.name).mkdir(exist_ok=True)
        rank = Rank(index, size, str(meeting / directory.name)) if size > 1 else None
        executors.append(load(directory, rank, json.loads(options)))
        answers[directory.name] = run(executors[-1], is_first=index == 0)
    if index == 0:
        out.write_bytes(msgspec.json.encode(answers))
    sys.stdout.flush()
    os._exit(0)


def load(directory: Path, rank: Rank | None, options: dict[str, object]) -> TorchExecutor:
    sizes = {"max_total_tokens": 8192, "page_size": 4, "max_running_requests": 8, "cuda_graph_max_bs": 8}
    config = EngineConfig.from_options({"model_path": str(directory), "load_format": "dummy", "dtype": "float32", **sizes, **options})
    return create_executor(config, rank)


def run(executor: TorchExecutor, *, is_first: bool) -> list[tuple[RowResult, ...]]:
    pending = []
    for plan, masks in zip(*steps(), strict=True):
        executor.launch(plan)
        pending.append(executor.sample(plan, masks if is_first else None))
    return [step.result().rows for step in pending]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5], sys.argv[6], Path(sys.argv[7]))
