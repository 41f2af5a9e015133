"""Hostile constraints: refused by the limit that they hit, while others are compiled and plain requests run on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ramet.errors import GrammarError
from ramet.grammar.compiler import create_grammar_compiler
from ramet.grammar.language import Language
from ramet.grammar.lowering import lower
from ramet.grammar.lowering_process import Limits, LoweringProcesses
from ramet.grammar.matcher import Vocabulary
from ramet.runtime.request import GrammarSpec
from ramet.runtime.scheduler.constraints import GrammarCache

BYTES = Vocabulary((*(bytes([byte]) for byte in range(256)), b""), frozenset({256}), (256,), 257)
SLOW = "(?:a{1000}){1000}"


def nested_one_of(depth: int) -> str:
    schema: object = {"type": "integer"}
    for index in range(depth):
        schema = {"oneOf": [schema, {"type": "object", "properties": {"k": {"const": index}}, "required": ["k"]}]}
    return json.dumps(schema)


HOSTILE = (
    ("json_schema", nested_one_of(16)),
    ("json_schema", json.dumps({"enum": [f"choice {index}" for index in range(10_000)]})),
    ("regex", SLOW),
    ("regex", "(?:[ab]{0,5000}c){0,2000}"),
    ("json_schema", json.dumps({"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}})),
    ("json_schema", json.dumps({"properties": {f"property_{index}": {"type": "string"} for index in range(2_000)}})),
    ("json_schema", '{"items":' * 3000 + "true" + "}" * 3000),
)


@pytest.fixture(scope="module")
def processes() -> Iterator[LoweringProcesses]:
    found = LoweringProcesses(Limits(seconds=1.5))
    yield found
    found.close()


def test_the_process_says_what_the_function_says(processes: LoweringProcesses) -> None:
    schema = '{"properties": {"a": {"minimum": 3}}}'
    for kind, source in (("json_schema", schema), ("regex", "a|b{3}"), ("ebnf", f"start: %json {schema}"), ("regex", r"\p{L}")):
        ours, theirs = lower(kind, source), processes.lower(kind, source)
        assert (ours.kind, ours.text, ours.worst) == (theirs.kind, theirs.text, theirs.worst)
        assert (ours.language is None) == (theirs.language is None) == ("p{L}" in source)
        if ours.language is not None:
            assert facts(ours.read()) == facts(theirs.read())
    with pytest.raises(GrammarError) as refused:
        processes.lower("json_schema", '{"properties": {"a": {"type": "objekt"}}}')
    assert (refused.value.where, refused.value.param) == ("/properties/a/type", "json_schema") and str(refused.value).count("(at") == 1


def facts(language: Language) -> tuple[Any, ...]:
    size = language.walker.num_settled
    return (
        language.start,
        language.walker.arena.nodes[:size],
        language.walker.arena.rules,
        language.walker.settled,
        language.endings.settled,
    )


def test_what_takes_too_long_is_killed_and_the_next_one_is_not_kept_waiting(processes: LoweringProcesses) -> None:
    start = time.monotonic()
    with pytest.raises(GrammarError, match=r"limit of 1\.5 s"):
        processes.lower("regex", SLOW)
    assert time.monotonic() - start < 60  # of idle priority: on a busy machine the processor time takes longer
    assert processes.lower("regex", "ab").text == "ab"


@pytest.mark.parametrize("source", ["[" * 100_000, json.dumps({"title": "x" * (1 << 20)})], ids=["depth", "size"])
def test_limits_are_named(processes: LoweringProcesses, source: str) -> None:
    with pytest.raises(GrammarError, match="limit"):
        processes.lower("json_schema", source)


def test_a_thread_beside_hostile_constraints_keeps_its_pace() -> None:
    """The rate of a loop that, like a scheduler, needs the interpreter for 1 ms in every 10."""
    compiler = create_grammar_compiler("llguidance", BYTES, isolated=True)
    compiler.compile("regex", "warm")
    alone = steps_in(1.5)
    cache = GrammarCache(compiler)
    for index, (kind, source) in enumerate(HOSTILE):
        cache.request(GrammarSpec(kind, source), str(index))  # type: ignore[arg-type]
    beside = steps_in(1.5)
    cache.close()
    assert beside >= 0.4 * alone, (beside, alone)  # a stall shows as 0.1; a busy machine as 0.6


def steps_in(seconds: float) -> int:
    steps, stop = 0, time.monotonic() + seconds
    while time.monotonic() < stop:
        threading.Event().wait(0.009)
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        steps += 1
    return steps


@pytest.mark.parametrize(
    ("kind", "source"),
    [("json_schema", json.dumps({"enum": [{"a": [index] * 40} for index in range(1000)]})), ("regex", SLOW)],
    ids=["ours", "the engine's"],
)
def test_what_takes_too_much_memory_is_killed_and_the_next_one_is_served(kind: str, source: str) -> None:
    processes = LoweringProcesses(Limits(memory_mib=180))
    with pytest.raises(GrammarError, match=f"^{kind}: compiling it needs more than the limit of 180 MiB") as refused:
        processes.lower(kind, source)
    assert refused.value.param == kind
    assert processes.lower("regex", "ab").text == "ab"
    processes.close()
