"""What the grammar forces takes no pass of its own: passes counted, news, logprobs, limits; and runs that are tokenised once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ramet.grammar.compiler import create_grammar_compiler
from ramet.grammar.matcher import Vocabulary
from ramet.runtime.request import Finish, FinishKind, GrammarSpec, LogprobParams, SamplingParams
from ramet.runtime.scheduler.forced_runs import ForcedRuns
from tests.runtime.scheduler.automata import AutomatonCompiler, automaton, line
from tests.runtime.scheduler.drive import Drive, request

ABC = (20, 21, 22)
FIELDS = line(1, 2, 3, ABC, ABC, 4, 5, 6, 7, 8, 9, 10, ABC, 11, 12)
FREE = line(*[ABC] * 12)


def drive(*, overlap: bool = False, **options: object) -> Drive:
    return Drive(overlap=overlap, compiler=AutomatonCompiler(), **options)


def run_one(runs: Drive, grammar: GrammarSpec = FIELDS, prompt: Sequence[int] = range(1, 20), new: int = 30, **fields: object) -> Drive:
    runs.add(request("a", prompt, new, grammar=grammar, **fields))
    runs.settle_grammars()
    while runs.scheduler.has_work:
        runs.step()
    return runs


def test_a_pass_per_choice_and_none_for_what_is_forced() -> None:
    done = run_one(drive())
    assert [len(row.token_ids) for row in done.rows] == [19 + 3, 1, 1 + 7]
    assert done.finish("a") == Finish(FinishKind.STOP)
    assert tuple(done.tokens["a"]) == done.expected("a")
    assert done.ends["a"].forced_tokens == done.scheduler.stats().forced_tokens_total == 12


def test_the_overlapped_loop_loses_one_pass_per_run_until_it_plans_late() -> None:
    assert len(run_one(drive(overlap=True, late=False)).plans) == 5
    assert len(run_one(drive(overlap=True, late=True)).plans) == 3


def test_the_scheduler_asks_for_late_plans_only_while_jumps_are_frequent() -> None:
    runs = drive(overlap=True)
    runs.add(request("a", [30], 200, grammar=line(*[ABC, 1, 2] * 10, *[ABC] * 40)))
    runs.settle_grammars()
    wanted = []
    while runs.scheduler.has_work:
        runs.step()
        wanted.append(runs.scheduler.wants_results_first)
    first, last = wanted.index(True), len(wanted) - wanted[::-1].index(True)
    assert 2 <= first <= 6 and all(wanted[first:last])
    assert last <= len(wanted) - 20
    assert not run_one(drive(overlap=True), FREE).scheduler.wants_results_first


@pytest.mark.parametrize("overlap", [False, True], ids=["serial", "overlap"])
def test_forced_text_is_sent_before_it_is_computed(overlap: bool) -> None:
    runs = drive(overlap=overlap, late=False)
    runs.add(request("a", [30, 31], 30, grammar=line(ABC, 1, 2, 3, ABC)))
    runs.settle_grammars()
    runs.step()
    if overlap:
        runs.step()
    assert runs.tokens["a"][1:] == [1, 2, 3]


def test_a_grammar_without_a_choice_needs_no_model() -> None:
    done = run_one(drive(), line(1, 2, 3))
    assert done.plans == [] and done.tokens["a"] == [1, 2, 3] and done.finish("a") == Finish(FinishKind.STOP)
    assert done.ends["a"].scheduled_time == done.now and done.ends["a"].forced_tokens == 3


def test_logprobs_of_such_a_grammar_take_one_pass() -> None:
    done = run_one(drive(), line(1, 2, 3), logprobs=LogprobParams(start_len=17))
    assert [len(row.token_ids) for row in done.rows] == [19 + 2]
    assert [entry.token_id for entry in done.prompt_logprobs["a"]] == [18, 19]
    assert [entry.token_id for entry in done.logprobs["a"]] == [1, 2, 3]


def test_a_forced_cycle_ends_at_the_length_limit() -> None:
    done = run_one(drive(), automaton([{1: 1}, {2: 0}], []), new=11)
    assert done.tokens["a"] == [1, 2] * 5 + [1] and done.finish("a") == Finish(FinishKind.LENGTH)


def test_a_forced_stop_token_ends_after_min_new_tokens_only() -> None:
    sampling = SamplingParams(max_new_tokens=30, min_new_tokens=2, temperature=0.0)
    done = run_one(drive(), line(7, ABC, 7, 8, ABC), sampling=sampling, stop_token_ids=(7,))
    assert len(done.tokens["a"]) == 3 and done.finish("a") == Finish(FinishKind.STOP, matched=7)


def test_a_cached_beginning_of_the_output_is_not_counted_as_prompt() -> None:
    runs = run_one(drive())
    runs.add(request("b", range(1, 20), 30, grammar=FIELDS))
    runs.settle_grammars()
    runs.run()
    assert next(len(row.token_ids) for row in runs.rows if row.request_id == "b") == 1
    assert runs.ends["b"].cached_tokens == runs.scheduler.counters.cached_tokens == 19


def test_long_runs_share_the_room_that_prompts_have() -> None:
    runs = drive(chunked_prefill_size=8, num_pages=512)
    long = line(ABC, *range(1, 39), *range(1, 39), ABC)
    runs.add(request("one", [30], 150, grammar=long), request("two", [29], 150, grammar=long), request("plain", [31], 60))
    runs.settle_grammars()
    runs.run()
    assert max(plan.num_tokens for plan in runs.plans) == 8 + 3
    runs.assert_outputs()


def test_switched_off_every_token_takes_a_pass() -> None:
    done = run_one(drive(disable_jump_forward=True))
    assert len(done.plans) == 15 and done.ends["a"].forced_tokens == 0


PIECES = (b"<e>", b"a", b"b", b"ab", b"x", b"xa", b"1", b"2")


def unsteady_encode(text: str) -> list[int]:
    """Cuts "ab" in two behind an x, and not at the beginning of a text: as tokenizers do with a word behind a quotation mark."""
    ids = {piece.decode(): index for index, piece in enumerate(PIECES)}
    found, at = [], 0
    while at < len(text):
        size = 2 if text[at : at + 2] == "ab" and (at == 0) else 1
        found.append(ids[text[at : at + size]])
        at += size
    return found


def steps(matcher: ForcedRuns, *, jump: bool) -> list[int]:
    """The text "x…" by masks, taking the lowest token that is allowed; or with jumps."""
    out: list[int] = []
    while not matcher.stopped:
        run = matcher.forced_tokens() if jump else []
        if not run:
            row = np.zeros(1, dtype=np.uint32)
            matcher.fill_mask(row)
            run = [next(token for token in range(8) if row[0] >> np.uint32(token) & 1)]
        assert matcher.accept(run) == len(run)
        out += run
    return out


def test_a_run_is_cut_into_tokens_once() -> None:
    compiler = create_grammar_compiler("llguidance", Vocabulary(PIECES, frozenset({0}), (0,), 8), unsteady_encode)
    grammar = compiler.compile("regex", "[12]xab[12]xxab")
    assert steps(ForcedRuns(grammar.matcher()), jump=False) == steps(ForcedRuns(grammar.matcher()), jump=True)


def test_rollback_goes_back_into_a_run() -> None:
    compiler = create_grammar_compiler("llguidance", Vocabulary(PIECES, frozenset({0}), (0,), 8), unsteady_encode)
    matcher = ForcedRuns(compiler.compile("regex", "[12]xab[12]").matcher())
    assert matcher.accept([6]) == 1
    run = matcher.forced_tokens()
    assert matcher.accept(run) == len(run) >= 3 and matcher.accept([7]) == 1 and matcher.stopped
    matcher.rollback(3)
    assert matcher.forced_tokens() == run[-2:] and matcher.accept([run[-2]]) == 1
    matcher.rollback(len(run) - 1)
    assert matcher.forced_tokens() == run
    assert matcher.accept([*run, 6]) == len(run) + 1
