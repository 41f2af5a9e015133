"""Grammars beside the scheduler: masks, waiting apart, failures, and the compile cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ramet.errors import GrammarError
from ramet.grammar.matcher import MaskTask
from ramet.grammar.parallel_masks import ParallelMasks
from ramet.runtime.executor.fake import FakeModel
from ramet.runtime.request import Finish, FinishKind, GrammarSpec, SamplingParams
from ramet.runtime.scheduler.constraints import GrammarCache
from tests.runtime.scheduler.drive import Drive, request
from tests.waiting import PATIENCE

EOS = 0


class CyclingMatcher:
    """Tokens must be 1, 2, … in turn (with 20 more as an alternative to each); complete after every third, stopped after `length`."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._taken = 0

    def _allowed(self) -> set[int]:
        if self.stopped:
            return {EOS}
        turn = self._taken % 3 + 1
        return {turn, turn + 20} | ({EOS} if self.complete else set())

    def accept(self, token_ids: Sequence[int]) -> int:
        for count, token in enumerate(token_ids):
            if token not in self._allowed() or token == EOS:
                return count
            self._taken += 1
        return len(token_ids)

    def rollback(self, num_tokens: int) -> None:
        self._taken -= num_tokens

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        row[:] = 0
        for token in self._allowed():
            row[token // 32] |= np.uint32(1 << (token % 32))

    def start_mask(self, row: npt.NDArray[np.uint32]) -> None:
        self.fill_mask(row)

    def forced_tokens(self) -> list[int]:
        return []

    @property
    def complete(self) -> bool:
        return self._taken > 0 and self._taken % 3 == 0

    @property
    def stopped(self) -> bool:
        return self._taken >= self._length


class Cycling:
    def __init__(self, length: int) -> None:
        self._length = length

    def matcher(self, max_tokens: int | None = None) -> CyclingMatcher:
        return CyclingMatcher(self._length)


class SlowCompiler:
    """Compiles the number in the source; 'bad' is refused, 'odd' breaks. Waits for `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.compiled: list[str] = []

    def close(self) -> None:
        self.gate.set()

    def compile(self, kind: str, source: str) -> Cycling:
        self.gate.wait(PATIENCE)
        self.compiled.append(source)
        if source == "bad":
            raise GrammarError("unbalanced parenthesis", where="char 7")
        return Cycling(int(source))


def spec(source: str) -> GrammarSpec:
    return GrammarSpec("regex", source)


def run(drive: Drive) -> None:
    drive.run()
    drive.scheduler.close()


@pytest.mark.parametrize("overlap", [False, True], ids=["serial", "overlap"])
@pytest.mark.parametrize("pool", [400, 60], ids=["roomy", "retracting"])
def test_masked_rows_follow_their_grammar_beside_free_ones(overlap: bool, pool: int) -> None:
    drive = Drive(overlap=overlap, compiler=SlowCompiler(), num_pages=pool)
    drive.scheduler.planner.ratio.value = 0.0
    for i in range(6):
        sampling = SamplingParams(max_new_tokens=30, temperature=1.0)
        drive.add(request(f"c{i}", [9, i], sampling=sampling, grammar=spec("7"), seed=i), request(f"f{i}", [8, i], 12))
    run(drive)
    assert (drive.scheduler.counters.retractions > 0) == (pool == 60)
    for i in range(6):
        tokens = drive.tokens[f"c{i}"]
        assert [token % 20 for token in tokens[:7]] == [1, 2, 3, 1, 2, 3, 1][: len(tokens)]
        assert len(tokens) == 7 and drive.finish(f"c{i}") == Finish(FinishKind.STOP)
        assert tuple(drive.tokens[f"f{i}"]) == drive.expected(f"f{i}")


def test_the_end_token_is_taken_only_where_the_text_is_complete() -> None:
    drive = Drive(compiler=SlowCompiler(), model=FakeModel(vocab_size=64, eos_probability=1.0))
    drive.add(request("a", [9], 30, grammar=spec("12")))
    run(drive)
    assert len(drive.tokens["a"]) == 4 and drive.finish("a") == Finish(FinishKind.STOP, matched=EOS)


def test_ignore_eos_still_ends_at_the_end_token() -> None:
    drive = Drive(compiler=SlowCompiler(), model=FakeModel(vocab_size=64, eos_probability=1.0))
    drive.add(request("a", [9], 30, grammar=spec("12"), stop_token_ids=(63,)))
    run(drive)
    assert drive.finish("a").kind is FinishKind.STOP


def test_a_bad_grammar_ends_that_request_alone() -> None:
    drive = Drive(compiler=SlowCompiler())
    drive.add(request("bad", [9], grammar=spec("bad")), request("odd", [9], grammar=spec("odd")), request("good", [9], 3))
    run(drive)
    bad = drive.finish("bad")
    assert (bad.kind, bad.status, bad.code) == (FinishKind.ERROR, 400, "invalid_grammar") and "char 7" in bad.message
    assert (drive.finish("odd").kind, drive.finish("odd").status) == (FinishKind.ERROR, 500)
    assert tuple(drive.tokens["good"]) == drive.expected("good")


class Failing(CyclingMatcher):
    """Raises in `method` when `turn` tokens have been taken, wherever it is not the thread that compiles."""

    def __init__(self, length: int, method: str, turn: int, error: Exception) -> None:
        super().__init__(length)
        self._failing, self._turn, self._error = method, turn, error

    def _may_fail(self, method: str) -> None:
        if method == self._failing and self._taken >= self._turn and threading.current_thread() is threading.main_thread():
            raise self._error

    def accept(self, token_ids: Sequence[int]) -> int:
        self._may_fail("accept")
        return super().accept(token_ids)

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        self._may_fail("fill_mask")
        super().fill_mask(row)

    def start_mask(self, row: npt.NDArray[np.uint32]) -> MaskTask | None:
        self._may_fail("start_mask")

        def run() -> None:
            self._may_fail("run")
            CyclingMatcher.fill_mask(self, row)

        return MaskTask(run, None, run, None)

    def forced_tokens(self) -> list[int]:
        self._may_fail("forced_tokens")
        return super().forced_tokens()


@dataclass(frozen=True)
class FailingCompiler(SlowCompiler):
    method: str
    turn: int
    error: Exception

    def compile(self, kind: str, source: str) -> Any:
        return Cycling(7) if source == "good" else self

    def matcher(self, max_tokens: int | None = None) -> Failing:
        matcher = Failing(7, self.method, self.turn, self.error)
        matcher._may_fail("matcher")
        return matcher

    def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [GrammarError("it grew too complex"), ZeroDivisionError("by zero")], ids=["grammar", "bug"])
@pytest.mark.parametrize("overlap", [False, True], ids=["serial", "overlap"])
@pytest.mark.parametrize("filler", [None, ParallelMasks(4)], ids=["one by one", "together"])
@pytest.mark.parametrize("method", ["matcher", "accept", "fill_mask", "start_mask", "run", "forced_tokens"])
def test_a_grammar_that_fails_while_it_runs_ends_its_own_request_alone(
    method: str, filler: ParallelMasks | None, overlap: bool, error: Exception
) -> None:
    is_asked = method not in ({"start_mask", "run"} if filler is None else {"fill_mask"})
    turn = 0 if method == "matcher" else 2
    model = FakeModel(vocab_size=64, eos_probability=0.5)
    drive = Drive(compiler=FailingCompiler(method, turn, error), mask_filler=filler, overlap=overlap, model=model)
    sampling = SamplingParams(max_new_tokens=30, temperature=1.0)
    for i in range(3):
        drive.add(request(f"fails{i}", [9, i], sampling=sampling, grammar=spec("fails"), seed=i))
        drive.add(request(f"good{i}", [8, i], sampling=sampling, grammar=spec("good"), seed=i), request(f"free{i}", [7, i], 12))
    run(drive)
    for i in range(3):
        assert drive.finish(f"good{i}").kind is FinishKind.STOP and tuple(drive.tokens[f"free{i}"]) == drive.expected(f"free{i}")
        finish = drive.finish(f"fails{i}")
        if not is_asked:
            assert finish.kind is FinishKind.STOP
            continue
        assert finish.kind is FinishKind.ERROR and finish.status == (400 if isinstance(error, GrammarError) else 500)
        assert str(error.args[0]) in finish.message
        tokens = drive.tokens.get(f"fails{i}", [])
        assert [token % 20 for token in tokens[:turn]] == [1, 2][:turn] and len(tokens) <= turn + (method == "accept")


def test_others_run_while_a_grammar_compiles() -> None:
    compiler = SlowCompiler()
    compiler.gate.clear()
    drive = Drive(compiler=compiler)
    drive.add(request("waits", [9], 9, grammar=spec("4")), request("gone", [9], 9, grammar=spec("5")), request("runs", [9], 5))
    while "runs" not in drive.ends:
        assert drive.step() is not None
    assert drive.step() is None and drive.scheduler.stats().num_waiting_grammar == 2
    assert drive.scheduler.abort("gone")
    compiler.gate.set()
    run(drive)
    assert drive.finish("gone").kind is FinishKind.ABORT and drive.finish("waits").kind is FinishKind.STOP
    stats = drive.scheduler.stats()
    assert stats.grammars_total in (1, 2) and stats.grammar_seconds_total > 0
    assert stats.masked_rows_total >= len(drive.tokens["waits"])


def test_one_grammar_is_compiled_once_and_the_cache_is_bounded() -> None:
    compiler = SlowCompiler()
    cache = GrammarCache(compiler, vocab_size=64, max_cached=2)

    def compile_all(*sources: str) -> None:
        for source in sources:
            if cache.get(spec(source)) is None:
                cache.request(spec(source), source)
        deadline = time.monotonic() + PATIENCE
        while cache._waiting:
            cache.ready()
            assert time.monotonic() < deadline

    compile_all("3", "3", "3")
    assert compiler.compiled == ["3"]
    compile_all("4")
    compile_all("3", "5")
    assert cache.get(spec("4")) is None and cache.get(spec("3")) is not None
    cache.close()


def test_the_first_mask_is_made_where_grammars_compile() -> None:
    makers: list[str] = []

    class Watched(CyclingMatcher):
        def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
            makers.append(threading.current_thread().name)
            super().fill_mask(row)

    class WatchedGrammar:
        def matcher(self, max_tokens: int | None = None) -> Watched:
            assert max_tokens == 5
            return Watched(7)

    class WatchedCompiler(SlowCompiler):
        def compile(self, kind: str, source: str) -> WatchedGrammar:  # type: ignore[override]
            return WatchedGrammar()

    drive = Drive(compiler=WatchedCompiler())
    drive.add(request("a", [9], 5, grammar=spec("7")))
    run(drive)
    assert makers[0].startswith("ramet-grammar") and not any(name.startswith("ramet-grammar") for name in makers[1:])


def test_without_a_compiler_constraints_are_refused_by_flag() -> None:
    drive = Drive()
    drive.add(request("a", [9], grammar=spec("3")))
    drive.run()
    assert drive.finish("a").code == "unsupported" and "--grammar-backend" in drive.finish("a").message
