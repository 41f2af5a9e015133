"""Masks that requests share are those that each would have computed for itself."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.mask_memory import MaskMemory
from ramet.grammar.matcher import CompiledGrammar, Vocabulary
from tests.grammar.schema_cases import CASES

EOS = 260
WORDS = (b'{"', b'":', b'","', b"aa", b"aaaa", b"true", b"12", b"\\u00", b"0.5", b"}]")
PIECES = (*(bytes([byte]) for byte in range(256)), *WORDS[:4], b"", *WORDS[4:])
VOCABULARY = Vocabulary(PIECES, frozenset({EOS}), (EOS,), 288)


def encode(text: str) -> list[int]:
    """Greedy, as most tokenizers write most text."""
    data, ids, at = text.encode(), [], 0
    while at < len(data):
        piece = next(piece for n in range(6, 0, -1) if (piece := data[at : at + n]) in IDS)
        ids.append(IDS[piece])
        at += len(piece)
    return ids


IDS = {piece: index for index, piece in enumerate(PIECES) if piece}
COMPILER = LlguidanceCompiler(VOCABULARY, encode)


def assert_equal_masks_on_the_way(grammar: CompiledGrammar, fresh: CompiledGrammar, rng: random.Random) -> int:
    """Walk at random, and compare; returns the length of the walk."""
    shared, own = grammar.matcher(60), fresh.matcher(60)
    for length in range(60):
        rows = np.zeros((2, 9), dtype=np.uint32)
        shared.fill_mask(rows[0])
        own.fill_mask(rows[1])
        assert (rows[0] == rows[1]).all(), f"after {length} tokens"
        assert shared.forced_tokens() == own.forced_tokens(), f"after {length} tokens"
        token = rng.choice(np.flatnonzero(np.unpackbits(rows[0].view(np.uint8), bitorder="little")).tolist())
        assert shared.accept((token,)) == own.accept((token,)) == 1
        if shared.stopped or token == EOS:
            return length
    return 60


@pytest.mark.parametrize("case", range(1, len(CASES), 3))
def test_shared_masks_equal_those_of_a_grammar_that_nobody_used(case: int) -> None:
    source = json.dumps(CASES[case].schema)
    grammar, rng = COMPILER.compile("json_schema", source), random.Random(case)
    for _ in range(4):
        assert_equal_masks_on_the_way(grammar, COMPILER.compile("json_schema", source), rng)


@pytest.mark.parametrize("regex", ["a*b?", "(ab|aab|aaab){1,5}c", "[a-z]{3,9}( [0-9]{2,4})*", '"([^"\\\\]|\\\\.){2,8}"'])
def test_regexes_too(regex: str) -> None:
    grammar, rng = COMPILER.compile("regex", regex), random.Random(1)
    lengths = [assert_equal_masks_on_the_way(grammar, COMPILER.compile("regex", regex), rng) for _ in range(12)]
    assert max(lengths) > 1


def test_memory_forgets_what_was_not_used_for_longest() -> None:
    memory = MaskMemory(max_bytes=3 * 8)
    rows = [np.full(2, n, dtype=np.uint32) for n in range(4)]
    for place in range(3):
        memory.keep(place, rows[place])
    into = np.zeros(2, dtype=np.uint32)
    assert memory.copy(0, into) and (into == 0).all()
    memory.keep(3, rows[3])
    assert not memory.copy(1, into)
    assert memory.copy(0, into) and memory.copy(3, into) and (into == 3).all()
