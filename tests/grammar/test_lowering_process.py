"""Hostile constraints: refused by the limit that they hit, while others are compiled and plain requests run on."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

from ramet.errors import GrammarError, InternalError, QueueFull, RametError
from ramet.grammar import lowering_main
from ramet.grammar.compiler import create_grammar_compiler
from ramet.grammar.language import Language
from ramet.grammar.lowering import lower
from ramet.grammar.lowering_nursery import LoweringProcess
from ramet.grammar.lowering_process import Limits, LoweringProcesses
from ramet.grammar.matcher import Vocabulary
from ramet.runtime.request import GrammarSpec
from ramet.runtime.scheduler.constraints import GrammarCache
from tests.waiting import PATIENCE, wait_until

BYTES = Vocabulary((*(bytes([byte]) for byte in range(256)), b""), frozenset({256}), (256,), 257)
HUGE = r"(?:a{1000}){1000}\p{L}"
"""Not for our reader, which would say that its texts are too long: the engine takes memory and time for it."""
SLOW = json.dumps({"type": "string", "allOf": [{"pattern": "^(a{2003})*$"}, {"pattern": "^(a{1999})*$"}, {"minLength": 1}]})


def nested_one_of(depth: int) -> str:
    schema: object = {"type": "integer"}
    for index in range(depth):
        schema = {"oneOf": [schema, {"type": "object", "properties": {"k": {"const": index}}, "required": ["k"]}]}
    return json.dumps(schema)


HOSTILE = (
    ("json_schema", nested_one_of(16)),
    ("json_schema", json.dumps({"enum": [f"choice {index}" for index in range(10_000)]})),
    ("json_schema", SLOW),
    ("regex", HUGE),
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
    with pytest.raises(GrammarError, match=r"limit of 1\.5 s"):
        processes.lower("json_schema", SLOW)  # which would take minutes
    assert processes.lower("regex", "ab").text == "ab"


def test_slow_constraints_do_not_hold_up_quick_ones_and_too_many_are_turned_away() -> None:
    """Each of the slow ones would take minutes. The quick one waits for the fast lane alone."""
    processes = LoweringProcesses(Limits(seconds=60))
    slow = [threading.Thread(target=outcome, args=(processes, "json_schema", SLOW + " " * index), daemon=True) for index in range(6)]
    for thread in slow:
        thread.start()
    assert processes.lower("regex", "ab").text == "ab"
    processes.close()
    for thread in slow:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_process_that_comes_while_it_is_closed_is_ended_and_no_other_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = LoweringProcesses()
    spawn = processes._nursery.spawn
    came: list[LoweringProcess] = []

    def late() -> LoweringProcess:
        came.append(spawn())
        processes.close()
        return came[0]

    monkeypatch.setattr(processes._nursery, "spawn", late)
    with pytest.raises(InternalError, match="closed"):
        processes.lower("regex", "ab")
    wait_until(lambda: came[0].used_seconds is None)
    monkeypatch.undo()
    with pytest.raises(InternalError, match="closed"):
        processes.lower("regex", "ab")


def outcome(processes: LoweringProcesses, kind: str, source: str) -> str:
    try:
        return processes.lower(kind, source).text
    except RametError as error:
        return error.message


def test_what_waits_for_the_slow_lane_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.grammar.lowering_process.MAX_SLOW", 0)
    monkeypatch.setattr("ramet.grammar.lowering_process.MAX_WAITING", 0)
    processes = LoweringProcesses()
    with pytest.raises(QueueFull, match="try again later"):
        processes.lower("json_schema", json.dumps({"title": "x" * (1 << 17)}))
    assert processes.lower("regex", "ab").text == "ab"
    processes.close()


LARGE = json.dumps({"enum": [f"choice {index}" for index in range(10_000)]})


def test_few_are_compiled_at_once_and_many_in_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of process are kept, and say the same. None counts as starving here, however little the machine has left."""
    monkeypatch.setattr("ramet.grammar.lowering_process.STARVING_SECONDS", inf)
    processes = LoweringProcesses()
    at_once = processes.lower("regex", "ab+")
    monkeypatch.setattr("ramet.grammar.lowering_process.FEW", 0)
    patiently = processes.lower("regex", "ab+")
    assert at_once.text == patiently.text
    kept = [processes._free[is_patient].get_nowait() for is_patient in (False, True)]
    assert [os.sched_getscheduler(process.pid) for process in kept] == [os.SCHED_OTHER, os.SCHED_IDLE]
    for process in kept:
        process.close()
    processes.close()


def test_a_constraint_that_starves_in_idle_time_begins_anew_outside_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here none gets so large a share that it does not count as starving. The next one does not try."""
    monkeypatch.setattr("ramet.grammar.lowering_process.STARVING_SECONDS", 0.0)
    monkeypatch.setattr("ramet.grammar.lowering_process.STARVING_SHARE", 1000.0)
    monkeypatch.setattr("ramet.grammar.lowering_process.PRESSED_SECONDS", inf)
    set_back: list[int] = []
    monkeypatch.setattr(LoweringProcess, "set_back", lambda process: set_back.append(process.pid))
    processes = LoweringProcesses()
    for _ in range(2):
        assert processes.lower("json_schema", LARGE).text == lower("json_schema", LARGE).text
    assert len(set_back) == 1
    processes.close()


def test_what_many_schemas_hold_is_made_while_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    common = [json.dumps(schema) for schema in lowering_main.COMMON]
    socket.send_fds(ours, [b"+"], [ours.fileno()])
    connections = lowering_main._next_connections(theirs, common)
    assert len(connections) == 1 and len(common) == len(lowering_main.COMMON)  # who asks comes first
    os.close(connections[0])
    monkeypatch.setattr("ramet.grammar.lowering_main.IDLE_SECONDS", 0.0)
    found: list[list[int]] = []
    waiting = threading.Thread(target=lambda: found.append(lowering_main._next_connections(theirs, common)))
    waiting.start()
    wait_until(lambda: not common)
    assert not found
    ours.close()
    waiting.join(PATIENCE)
    assert found == [[]]
    theirs.close()


@pytest.mark.parametrize(
    ("kind", "source"),
    [("regex", "(?:a{1000}){1000}"), ("ebnf", 'start: "x"{300000}'), ("json_schema", '{"type": "string", "minLength": 300000}')],
)
def test_a_shortest_text_that_is_too_long_is_refused_before_the_engine_sees_it(kind: str, source: str) -> None:
    with pytest.raises(GrammarError, match=r"shortest text has [0-9]+ bytes; the limit is 262144"):
        lower(kind, source)


@pytest.mark.parametrize("source", ["[" * 100_000, json.dumps({"title": "x" * (1 << 20)})], ids=["depth", "size"])
def test_limits_are_named(processes: LoweringProcesses, source: str) -> None:
    with pytest.raises(GrammarError, match="limit"):
        processes.lower("json_schema", source)


def test_a_thread_beside_hostile_constraints_keeps_its_pace() -> None:
    """The rate of a loop that, like a scheduler, needs the interpreter for 1 ms in every 10. It is held against the slower of the windows
    before and after, so that what else runs in the process counts on both sides."""
    compiler = create_grammar_compiler("llguidance", BYTES, isolated=True)
    compiler.compile("regex", "warm")
    cache = GrammarCache(compiler, BYTES.size)
    before = steps_in(1.5)
    for index, (kind, source) in enumerate(HOSTILE):
        cache.request(GrammarSpec(kind, source), str(index))  # type: ignore[arg-type]
    beside = steps_in(1.5)
    cache.close()
    assert beside >= 0.6 * min(before, steps_in(1.5)), (before, beside)  # a stall shows as 0.1


def steps_in(seconds: float) -> int:
    """How late a step is counts only as far as this process itself was running, with whichever of its threads: not what other processes
    take from it, nor a machine that stands still."""
    steps, passed = 0, 0.0
    while passed < seconds:
        began, used = time.monotonic(), time.process_time()
        threading.Event().wait(0.009)
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        steps += 1
        passed += min(time.monotonic() - began, 0.01 + time.process_time() - used)
    return steps


@pytest.mark.parametrize(
    ("kind", "source"),
    [("json_schema", json.dumps({"enum": [{"a": [index] * 40} for index in range(1000)]})), ("regex", HUGE)],
    ids=["ours", "the engine's"],
)
def test_what_takes_too_much_memory_is_killed_and_the_next_one_is_served(kind: str, source: str) -> None:
    processes = LoweringProcesses(Limits(seconds=60, memory_mib=180))
    with pytest.raises(GrammarError, match=f"^{kind}: compiling it needs more than the limit of 180 MiB") as refused:
        processes.lower(kind, source)
    assert refused.value.param == kind
    assert processes.lower("regex", "ab").text == "ab"
    processes.close()
