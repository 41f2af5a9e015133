"""Masks filled on many threads are those of the serial twin."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from ramet.errors import GrammarError
from ramet.grammar.compiler import create_grammar_compiler, create_mask_filler
from ramet.grammar.matcher import MaskFiller, Matcher, SerialMasks, Vocabulary
from ramet.grammar.parallel_masks import LEAST_TASKS, ParallelMasks
from ramet.runtime.scheduler.forced_runs import ForcedRuns

EOS = 256
PIECES = (*(bytes([byte]) for byte in range(256)), b"", *(b'{"', b'":', b'","', b"the", b"tr", b"ue", b"12", b"},"))
BYTES = Vocabulary(PIECES, frozenset({EOS}), (EOS,), len(PIECES))
WORDS = -(-BYTES.size // 32)
PERSON = {"properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}}, "required": ["name"], "minProperties": 1}
SOURCES = [
    ("json_schema", json.dumps(PERSON)),
    ("json_schema", json.dumps({"enum": ["the", "true", {"the": 12}]})),
    ("json_schema", '{"type": "array", "items": {"type": "boolean"}}'),
    ("regex", r"(the|tr|12)+z"),
    ("ebnf", 'start: (WORD " ")* WORD\nWORD: /[a-z]+/'),
]


def matchers(budgets: tuple[int | None, ...]) -> list[Matcher]:
    """Several of each grammar, so that some stand in the same place."""
    compiler = create_grammar_compiler("llguidance", BYTES, lambda text: list(text.encode()))
    grammars = [compiler.compile(kind, source) for kind, source in SOURCES]
    return [ForcedRuns(grammar.matcher(budget)) for grammar in grammars for budget in budgets]


@pytest.mark.parametrize("budgets", [(None, None, 200), (14, 15, 40, 40)], ids=["roomy", "closing"])
def test_rows_are_those_of_the_serial_twin(budgets: tuple[int | None, ...]) -> None:
    rng = random.Random(0)
    one, other = matchers(budgets), matchers(budgets)
    for _ in range(40):
        gone = [matcher.stopped or rng.random() < 0.1 for matcher in one]
        serial, parallel = filled(SerialMasks(), one, gone), filled(ParallelMasks(3), other, gone)
        assert np.array_equal(serial, parallel)
        for index in np.flatnonzero(~np.array(gone)).tolist():
            allowed = np.flatnonzero(np.unpackbits(serial[index].view(np.uint8), bitorder="little"))
            token = rng.choice(allowed.tolist())
            assert one[index].accept([token]) == other[index].accept([token]) == 1


def filled(filler: MaskFiller, some: list[Matcher], gone: list[bool]) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
    bits = np.full((len(some), WORDS), 7, dtype=np.uint32)
    filler.fill([None if is_gone else matcher for matcher, is_gone in zip(some, gone, strict=True)], bits)
    return bits


def test_twins_in_one_place_are_computed_once() -> None:
    computed: list[int] = []

    class Counted(ParallelMasks):
        def _compute(self, tasks, bits):  # type: ignore[no-untyped-def]
            computed.append(len(tasks))
            super()._compute(tasks, bits)

    compiler = create_grammar_compiler("llguidance", BYTES)
    grammar = compiler.compile(*SOURCES[0])
    bits = np.zeros((20, WORDS), dtype=np.uint32)
    Counted(2).fill([grammar.matcher(500) for _ in range(20)], bits)
    assert computed == [1] and (bits == bits[0]).all() and bits.any()
    Counted(2).fill([grammar.matcher(500) for _ in range(20)], bits)
    assert computed == [1, 0]


def test_a_grammar_that_fails_says_so_from_any_thread() -> None:
    compiler = create_grammar_compiler("llguidance", BYTES)
    some = [compiler.compile("regex", "[a-z]{2}").matcher() for _ in range(LEAST_TASKS + 1)]
    some[1].accept([ord("a")])
    broken = some[1]
    broken._matcher.consume_token(ord("1"))  # type: ignore[attr-defined]
    for filler in (SerialMasks(), ParallelMasks(2)):
        with pytest.raises(GrammarError):
            filler.fill(some, np.zeros((len(some), WORDS), dtype=np.uint32))


def test_the_filler_is_chosen_by_the_number_of_threads() -> None:
    assert isinstance(create_mask_filler("llguidance", 1), SerialMasks)
    assert isinstance(create_mask_filler("llguidance", 2), ParallelMasks)
    assert isinstance(create_mask_filler("none", 2), SerialMasks)
