"""The machinery of `python -m benchmarks.cpu`, on an engine that counts: what it asks, what it shows of failures, what its floors are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from benchmarks.cpu import measure
from benchmarks.cpu.engine_process import EngineFailed, EngineProcess
from benchmarks.cpu.engines import OURS, EngineChoice
from benchmarks.cpu.floors import Floor, Machine, ModelCost
from benchmarks.cpu.install_peers import InstallFailed, Recipe
from benchmarks.cpu.measure import START_UP, Bench
from benchmarks.cpu.report import Row, make_rows, table
from benchmarks.cpu.workloads import Ask, Figure, Workload
from tests.e2e.line_adapter import DIES, FALLS_SHORT, THROWS
from tests.waiting import PATIENCE, wait_until

ADAPTER = "tests.e2e.line_adapter"
FLOOR = Floor(Machine(cores=2, read_gb_s=10, int8_gmac_s=100, float_gflop_s=100), ModelCost(10**8, 10**8, 10**7, 10**4, 10**4))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    with EngineProcess(Path(sys.executable), ADAPTER, Path("some.gguf"), tmp_path / "log") as process:
        yield process


def test_an_engine_answers_while_native_code_writes_to_stdout(engine: EngineProcess) -> None:
    assert engine.about == {"version": "1", "options": "some.gguf"}
    assert engine.ask([[4, 5], [9]], 2, None, PATIENCE)["output_ids"] == [[6, 7], [10, 11]]
    assert engine.resident_mib(peak=True) >= engine.resident_mib(peak=False) > 1


def test_a_paused_engine_is_stopped_and_goes_on(engine: EngineProcess) -> None:
    child = psutil.Process().children()[-1]
    engine.pause()
    _until(child, stopped=True)
    with pytest.raises(EngineFailed, match="no answer in 0 s"):
        engine.ask([[1]], 1, None, 0.2)
    with engine.awake():
        _until(child, stopped=False)
    _until(child, stopped=True)


def _until(process: psutil.Process, *, stopped: bool) -> None:
    """A signal takes a moment to arrive."""
    wait_until(lambda: (process.status() == psutil.STATUS_STOPPED) == stopped)


def test_what_a_peer_throws_is_told_and_the_peer_lives(engine: EngineProcess) -> None:
    with pytest.raises(EngineFailed, match="ValueError: no such grammar"):
        engine.ask([[THROWS]], 1, None, PATIENCE)
    assert engine.ask([[1]], 1, None, PATIENCE)["output_ids"] == [[2]]


def test_the_end_of_a_process_is_told(engine: EngineProcess) -> None:
    with pytest.raises(EngineFailed, match="its process ended"):
        engine.ask([[DIES]], 1, None, PATIENCE)
    with pytest.raises(EngineFailed):
        engine.ask([[1]], 1, None, PATIENCE)


def test_failures_are_in_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One peer is not installable, another gives too few tokens in one workload of two."""

    def install(_self: EngineChoice, name: str) -> Path:
        if name == "openvino":
            raise InstallFailed("no wheel for this machine")
        return Path(sys.executable)

    monkeypatch.setattr(EngineChoice, "python", install)
    choices = {name: EngineChoice(name, ADAPTER, "#000", Recipe("x", ())) for name in (OURS, "llama.cpp", "openvino")}
    monkeypatch.setattr(measure, "ENGINES", choices)
    both = [_workload("good", 5), _workload("short", FALLS_SHORT)]
    names = [OURS, "llama.cpp", "openvino"]
    findings = Bench(Path("some.gguf"), tmp_path, timeout=PATIENCE, restarts=True).run(names, both, rounds=2)
    assert findings.failures["short"]["llama.cpp"] == "1 tokens came where 2 were asked for"
    assert len(findings.samples["good figure"][OURS]) == 2 and len(findings.samples[START_UP.figures[0].name][OURS]) == 2
    text = table(make_rows(findings, both, FLOOR), names, findings)
    assert "| good: good figure | tok/s | 1 | 1 | failed | **1.00** |" in text
    assert "OpenVINO GenAI failed in good, short, start-up and memory: no wheel for this machine" in text


def _workload(name: str, last_token: int) -> Workload:
    def run(ask: Ask, _generator: Random) -> list[float]:
        ask([[last_token]], 2)
        return [1.0]

    return Workload(name, (Figure(f"{name} figure", "tok/s"),), (1,), run)


@pytest.mark.parametrize(("better", "ours", "peers", "ratio"), [("higher", 30.0, (10.0, 20.0), 1.5), ("lower", 2.0, (3.0, 8.0), 1.5)])
def test_the_ratio_is_to_the_best_peer(better: Any, ours: float, peers: tuple[float, float], ratio: float) -> None:
    row = Row("w", Figure("f", "u", better), {OURS: [ours], "llama.cpp": [peers[0]], "openvino": [peers[1]]}, (60.0, "reads"))
    assert row.ratio == ratio
    assert row.of_floor == (0.5 if better == "higher" else 30.0)


def test_floors_are_the_longer_of_bytes_and_multiplications() -> None:
    one = FLOOR.decode(streams=1, context=0, steps=1)
    assert one.seconds == pytest.approx(1e8 / 1e10) and one.bound == "reads"
    many = FLOOR.decode(streams=64, context=0, steps=1)
    assert many.seconds == pytest.approx(64 * (1e8 + 1e7) / 2e11) and many.bound == "multiplications"
    prompt = FLOOR.prefill(100)
    assert prompt.seconds == pytest.approx((100 * 1e8 + 1e7) / 2e11 + 2 * 5050 * 1e4 / 2e11)
