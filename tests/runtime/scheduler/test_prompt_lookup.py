"""Guesses from what was said before: where they come from, what they save, and where none are made."""

from __future__ import annotations

import pytest

from ramet.runtime.plan import PENDING_TOKEN
from ramet.runtime.request import LogprobParams, SamplingParams
from ramet.runtime.scheduler.prompt_lookup import PromptLookup
from tests.runtime.scheduler.automata import AutomatonCompiler, automaton, line
from tests.runtime.scheduler.drive import Drive, request

CYCLE = automaton([{1: 1}, {2: 2}, {3: 0}], [])


def drive(**options: object) -> Drive:
    return Drive(compiler=AutomatonCompiler(), disable_jump_forward=True, num_guesses=4, **options)


def test_the_latest_occurrence_of_the_longest_match_goes_on() -> None:
    lookup = PromptLookup()
    assert lookup.guess([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], [], 3) == [4, 9, 2]
    assert lookup.guess([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], [7, 2, 3], 2) == [7, 2]
    assert lookup.guess([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], [7, 2, 3, 8], 9) == []


def test_a_guess_may_run_into_what_is_being_guessed() -> None:
    assert PromptLookup().guess([4, 5, 6, 5, 6], [], 7) == [5, 6, 5, 6, 5, 6, 5]


@pytest.mark.parametrize("overlap", [False, True], ids=["serial", "overlap"])
def test_right_guesses_save_passes(overlap: bool) -> None:
    runs = drive(overlap=overlap)
    runs.add(request("a", range(1, 10), 40, grammar=CYCLE))
    runs.settle_grammars()
    runs.run()
    assert runs.tokens["a"] == [1, 2, 3] * 13 + [1]
    stats = runs.scheduler.stats()
    assert stats.right_guesses_total == stats.guessed_tokens_total > 20
    assert len(runs.plans) == 40 - stats.right_guesses_total


def test_wrong_guesses_cost_nothing_but_rows() -> None:
    runs = drive()
    runs.add(request("a", [5, 6, 7] * 6, 20, grammar=line(*[(5, 6, 7)] * 21)))
    runs.settle_grammars()
    runs.run()
    runs.assert_outputs()
    stats = runs.scheduler.stats()
    assert stats.guessed_tokens_total > stats.right_guesses_total == 20 - len(runs.plans)


def test_no_guess_that_the_grammar_forbids_or_that_ends_the_text() -> None:
    runs = drive()
    runs.add(request("a", [20, 21, 22, 9, 20, 21, 22], 40, grammar=line((20, 30), (21, 31), (22, 32), 9, (20, 30), (21, 31), (9, 8))))
    runs.add(request("b", [20, 21, 0, 20, 21, 0], 8, stop_token_ids=(0,)))
    runs.settle_grammars()
    runs.run()
    runs.assert_outputs()
    assert all(row.token_ids != (0,) for row in runs.rows)


@pytest.mark.parametrize("fields", [{"logprobs": LogprobParams()}, {"sampling": SamplingParams(max_new_tokens=30, presence_penalty=0.5)}])
def test_logprobs_and_penalties_are_taken_one_by_one(fields: dict[str, object]) -> None:
    runs = drive()
    runs.add(request("a", [5, 6, 5, 6, 5, 6], 30, grammar=CYCLE, **fields))
    runs.settle_grammars()
    runs.run()
    assert runs.scheduler.stats().guessed_tokens_total == 0 and len(runs.plans) == 30


def test_no_row_stands_on_a_token_that_is_not_known() -> None:
    runs = drive(overlap=True)
    runs.add(request("a", [5, 6] * 5, 30, grammar=CYCLE), request("b", [7, 8] * 5, 12))
    runs.settle_grammars()
    runs.run()
    assert all(PENDING_TOKEN not in row.token_ids for row in runs.rows)
