"""Schemas as they are found in the wild (registries, OpenAPI, Kubernetes, pydantic, zod, tools of agents), cut down to what is special in
each, with instances. Each compiles fast enough for the lane of ordinary requests."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema.validators import validator_for

from ramet.grammar.lowering import lower
from tests.grammar.test_json_schema import COMPILER, accepts, in_other_order, walk_randomly, written

LINES = (Path(__file__).parent / "real_schemas.jsonl").read_text(encoding="utf-8").splitlines()
REAL = [json.loads(line) for line in LINES]
SECONDS = 1.0
"""Of processor time; the largest takes 0.2 s of them."""


@pytest.mark.parametrize("real", REAL, ids=lambda real: real["name"])
def test_real_schemas_decide_like_jsonschema(real: dict[str, Any]) -> None:
    schema = real["schema"]
    started = time.process_time()
    lowered = lower("json_schema", json.dumps(schema))
    grammar = COMPILER.assemble(lowered)
    assert time.process_time() - started < SECONDS
    judge = _judge(schema)
    walker, start, _ = lowered.read()
    for value in (*real["valid"], *real["invalid"]):
        is_valid = value in real["valid"]
        assert judge.is_valid(value) == is_valid, value
        text = written(value, schema)
        taken = walker.matches(start, text.encode())
        assert taken == accepts(grammar, text), text
        assert (taken or in_other_order(walker, start, value)) == is_valid, text
    for seed in range(4):
        judge.validate(json.loads(walk_randomly(grammar, walker, start, seed) or "null"))


def _judge(schema: dict[str, Any]) -> Any:
    """By its `$schema`; lists of `items` and `dependencies` without one are draft 7's."""
    text = json.dumps(schema)
    is_old = any(key in text for key in ('"items": [', '"dependencies"', '"additionalItems"'))
    validator = validator_for(schema, default=jsonschema.Draft7Validator if is_old else jsonschema.Draft202012Validator)
    return validator(schema, format_checker=jsonschema.FormatChecker())
