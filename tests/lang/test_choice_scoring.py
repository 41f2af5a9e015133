"""How choices are ranked, drawn, and tokenised at the border to their prompt."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as sgl
from ramet.program.backend import ChoiceScore
from ramet.program.boundary import scored_rows
from ramet.program.selection import decide, softmax

LONG_LIKELY_TAIL = [ChoiceScore((1,), (-1.0,)), ChoiceScore((2, 3, 4), (-1.5, -0.1, -0.1))]


def pick(scores: list[ChoiceScore], method: object, temperature: float = 0.0, seed: int = 0) -> str:
    names = [chr(ord("a") + i) for i in range(len(scores))]
    return decide(names, scores, method, temperature, random.Random(seed)).decision  # type: ignore[arg-type]


def test_methods_differ_where_they_should() -> None:
    assert pick(LONG_LIKELY_TAIL, sgl.token_length_normalized) == "b"
    assert pick(LONG_LIKELY_TAIL, sgl.greedy_token_selection) == "a"
    common = [ChoiceScore((1,), (-1.0,), (-0.5,)), ChoiceScore((2,), (-2.0,), (-6.0,))]
    assert pick(common, sgl.token_length_normalized) == "a"
    assert pick(common, sgl.unconditional_likelihood_normalized) == "b"


def test_a_logprob_of_zero_counts() -> None:
    assert pick([ChoiceScore((1, 2), (0.0, -1.0)), ChoiceScore((3,), (-0.9,))], sgl.token_length_normalized) == "a"
    assert pick([ChoiceScore((1,), (0.0,)), ChoiceScore((3,), (0.0,))], sgl.greedy_token_selection) == "a"


def test_sampling_follows_the_scores() -> None:
    scores = [ChoiceScore((1,), (math.log(0.6),)), ChoiceScore((2,), (math.log(0.2),))]
    drawn = Counter(pick(scores, sgl.token_length_normalized, 1.0, seed) for seed in range(2000))
    assert drawn["a"] / 2000 == pytest.approx(0.75, abs=0.04)
    meta = decide(["a", "b"], scores, sgl.token_length_normalized, 0.0, random.Random(0)).meta_info
    assert meta["probabilities"] == pytest.approx([0.75, 0.25])
    assert softmax([-2000.0, -2000.0]) == [0.5, 0.5]


def greedy_tokens(text: str) -> list[int]:
    """A tokenizer that merges pairs of equal neighbours, so that borders move."""
    tokens: list[int] = []
    index = 0
    while index < len(text):
        pair = index + 1 < len(text) and text[index] == text[index + 1]
        tokens.append(ord(text[index]) + 1000 * pair)
        index += 1 + pair
    return tokens


@settings(deadline=None, max_examples=200)
@given(st.text("ab ", min_size=1, max_size=8), st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=4))
def test_all_choices_are_scored_from_one_border(prompt: str, choices: list[str]) -> None:
    rows = scored_rows(greedy_tokens(prompt), [greedy_tokens(prompt + choice) for choice in choices])
    assert len({row[: rows.start] for row in rows.rows}) == 1
    assert all(len(row) > rows.start for row in rows.rows)
    scores = rows.scores([[None, *(-float(token) for token in row[1:])][rows.ask_from :] for row in rows.rows], None)
    for row, score in zip(rows.rows, scores, strict=True):
        assert score.token_ids == row[rows.start :]
        assert score.logprobs == tuple(0.0 if i == 0 else -float(row[i]) for i in range(rows.start, len(row)))
    alone = rows.alone()
    assert [row[alone.start :] for row in alone.rows] == [row[rows.start :] for row in rows.rows]


def test_merging_at_the_border_moves_it_back() -> None:
    rows = scored_rows(greedy_tokens("xa"), [greedy_tokens("xaa"), greedy_tokens("xab")])
    assert (rows.start, rows.rows[0][1:], rows.rows[1][1:]) == (1, (1097,), (97, 98))
