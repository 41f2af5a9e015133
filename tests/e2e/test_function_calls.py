"""Arguments of functions from the embedded model at temperature 1 (a part of `python -m benchmarks.function_calls`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.function_calls import run, tasks
from ramet.runtime.engine.engine import Engine

NUM_SCHEMAS = 25
MAX_NEW_TOKENS = 56


@pytest.mark.model
def test_every_output_keeps_its_schema_however_few_tokens_there_are(tmp_path: Path) -> None:
    orders = [task for task in tasks(range(100, 100 + 2 * NUM_SCHEMAS), None) if task.least <= MAX_NEW_TOKENS][:NUM_SCHEMAS]
    assert len(orders) == NUM_SCHEMAS
    with Engine(max_total_tokens=16384, context_length=2048, log_level="warning") as engine:
        outcomes = run(engine, orders, MAX_NEW_TOKENS, tmp_path / "outcomes.jsonl")
    assert len(outcomes) == 2 * NUM_SCHEMAS
    assert [(outcome.index, outcome.problem, outcome.text) for outcome in outcomes if outcome.problem] == []
    assert {outcome.finish for outcome in outcomes} == {"stop"}
