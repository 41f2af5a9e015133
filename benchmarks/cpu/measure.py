"""The run: every workload on every engine in turn, round after round, one engine awake at a time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

from benchmarks.cpu.engine_process import EngineFailed, EngineProcess
from benchmarks.cpu.engines import ENGINES, EngineChoice
from benchmarks.cpu.install_peers import InstallFailed
from benchmarks.cpu.workloads import Answer, Figure, Prompt, Workload

START_UP = Workload(
    "start-up and memory",
    (
        Figure("start to first token", "s", "lower"),
        Figure("resident then", "MiB", "lower", lambda floor: (floor.model.weight_bytes / (1 << 20), "weights")),
        Figure("resident at the peak of this run", "MiB", "lower", lambda floor: (floor.model.weight_bytes / (1 << 20), "weights")),
    ),
    (),
    lambda _ask, _generator: [],  # measured where processes start and end
)
_SETTLE_S = 0.2


@dataclass(slots=True)
class Findings:
    """`samples[figure][engine]`: a value per round. `failures[workload][engine]`: why values are missing. `others`: per measurement the
    share of the cores that processes outside of the benchmark used."""

    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    failures: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    others: list[float] = field(default_factory=list)

    def add(self, workload: Workload, engine: str, values: Sequence[float]) -> None:
        for figure, value in zip(workload.figures, values, strict=False):
            self.samples[figure.name][engine].append(value)


@dataclass(frozen=True, slots=True)
class Bench:
    """`restarts`: whether start-up is measured anew in every round, or once."""

    model: Path
    logs: Path
    timeout: float
    restarts: bool

    def run(self, names: Sequence[str], workloads: Sequence[Workload], rounds: int) -> Findings:
        findings = Findings()
        with ExitStack() as stack:
            engines = {name: engine for name in names if (engine := self._start(name, findings, workloads)) is not None}
            for engine in engines.values():
                stack.callback(engine.close)
            for index in range(rounds):
                self._round(index, engines, workloads, findings)
            for name, engine in engines.items():
                findings.samples[START_UP.figures[2].name][name].append(engine.resident_mib(peak=True))
        return findings

    def _start(self, name: str, findings: Findings, workloads: Sequence[Workload]) -> EngineProcess | None:
        """Up, measured once and paused; None, and why in the findings, where that cannot be."""
        try:
            engine = self._process(name, ENGINES[name])
        except (InstallFailed, EngineFailed) as error:
            print(f"{name}: {error}", flush=True)
            for workload in (*workloads, START_UP):
                findings.failures[workload.name][name] = str(error)
            return None
        findings.about[name] = engine.about
        findings.add(START_UP, name, [engine.ready_seconds, engine.resident_mib(peak=False)])
        print(f"{name}: ready after {engine.ready_seconds:.1f} s", flush=True)
        engine.settle()
        engine.pause()
        return engine

    def _process(self, name: str, choice: EngineChoice) -> EngineProcess:
        return EngineProcess(choice.python(name), choice.adapter, self.model, self.logs / f"{name}_engine.log")

    def _round(self, index: int, engines: Mapping[str, EngineProcess], workloads: Sequence[Workload], findings: Findings) -> None:
        order = [*engines]
        for workload in workloads:
            order = [*order[1:], order[0]] if order else order
            for name in order:
                if name not in findings.failures[workload.name]:
                    self._measure(index, name, engines[name], workload, findings)
        for name in order if index and self.restarts else ():
            self._restart(name, findings)

    def _measure(self, index: int, name: str, engine: EngineProcess, workload: Workload, findings: Findings) -> None:
        def ask(prompts: Sequence[Prompt], limit: int, schema: Mapping[str, Any] | None = None) -> Answer:
            answer = engine.ask(prompts, limit, schema, self.timeout)
            if schema is None and (wrong := [len(ids) for ids in answer["output_ids"] if len(ids) != limit]):
                raise EngineFailed(f"{wrong[0]} tokens came where {limit} were asked for")
            return Answer(answer["seconds"], answer["output_ids"])

        with engine.awake(), _Others(engine) as others:
            try:
                for width in workload.widths:
                    ask([[5, 6, 7, number] for number in range(width)], 2)  # memory is there, threads and caches are awake
                values = workload.run(ask, Random(f"{workload.name} {index}"))
            except EngineFailed as error:
                findings.failures[workload.name][name] = str(error)
                print(f"{workload.name}: {name}: {error}", flush=True)
                return
        findings.others.append(others.share)
        findings.add(workload, name, values)
        shown = ", ".join(f"{figure.name} {value:.4g} {figure.unit}" for figure, value in zip(workload.figures, values, strict=True))
        print(f"round {index + 1}: {name}: {shown}", flush=True)

    def _restart(self, name: str, findings: Findings) -> None:
        """A second process of the same engine, for how long it takes to come up."""
        time.sleep(_SETTLE_S)
        try:
            with self._process(name, ENGINES[name]) as engine:
                findings.add(START_UP, name, [engine.ready_seconds, engine.resident_mib(peak=False)])
        except EngineFailed as error:
            findings.failures[START_UP.name][name] = str(error)


class _Others:
    """What the rest of the machine took of the cores meanwhile: 0 is a quiet machine, 1 all of them."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self.share = 0.0

    def __enter__(self) -> _Others:
        self._began, self._busy = time.perf_counter(), _busy_seconds() - self._engine.cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = (time.perf_counter() - self._began) * (psutil.cpu_count() or 1)
        self.share = max(0.0, (_busy_seconds() - self._engine.cpu_seconds() - self._busy) / seconds)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)
