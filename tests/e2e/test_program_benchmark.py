"""The benchmark of programs runs to its end without a model, and its variants really differ in what they execute."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.programs.__main__ import main
from benchmarks.programs.workloads import WORKLOADS
from ramet.compiler.default_order import PASS_NAMES


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--fake",
        "--runs",
        "1",
        "--short-runs",
        "1",
        "--together",
        "2",
        "--rtt",
        "5",
        "--workloads",
        "judge",
        "react",
        "--output",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["programs", *words])
    main()
    report = json.loads((tmp_path / "programs_fake.json").read_text())
    cells = {(cell["workload"], cell["variant"], cell["rtt_ms"]): cell for cell in report["cells"]}
    for workload in ("judge", "react"):
        for variant in ("interpreted", "passes off", "compiled"):
            assert cells[workload, variant, 5.0]["latency_s"] > 0.005 < cells[workload, variant, 5.0]["programs_per_s"]
        assert ElementTree.parse(tmp_path / f"programs_fake_{workload}.svg").getroot().tag.endswith("svg")
    assert ("judge", "without parallelize", 5.0) in cells
    assert "judge" in capsys.readouterr().out


def test_every_workload_compiles_and_every_pass_changes_one() -> None:
    idle = set(PASS_NAMES)
    for workload in WORKLOADS:
        whole = workload.program.compilation.get().digest
        idle -= {name for name in idle if workload.program.without_passes(name).compilation.get().digest != whole}
    assert len(WORKLOADS) == 11
    assert not idle, f"no workload says what {', '.join(sorted(idle))} is worth"
