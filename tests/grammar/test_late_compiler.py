"""A compiler that is made on the side: who compiles waits for it, and who closes it closes what was made."""

from __future__ import annotations

import threading

import pytest

from ramet.errors import Unsupported
from ramet.grammar.late_compiler import LateCompiler
from tests.runtime.scheduler.automata import AutomatonCompiler, line
from tests.waiting import PATIENCE


class Closable(AutomatonCompiler):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_compiling_waits_until_it_is_made() -> None:
    gate = threading.Event()

    def make() -> AutomatonCompiler:
        assert gate.wait(PATIENCE)
        return AutomatonCompiler()

    late, spec = LateCompiler(make), line(3, 1)
    threading.Timer(0.05, gate.set).start()
    matcher = late.compile(spec.kind, spec.source).matcher()
    assert matcher.accept([3, 1]) == 2
    late.close()


def test_what_making_raised_is_raised_by_compiling() -> None:
    def make() -> AutomatonCompiler:
        raise Unsupported("no token ends a text")

    late, spec = LateCompiler(make), line(3)
    for _ in range(2):
        with pytest.raises(Unsupported, match="no token"):
            late.compile(spec.kind, spec.source)
    late.close()


def test_what_was_made_is_closed() -> None:
    made = Closable()
    late, spec = LateCompiler(lambda: made), line(3)
    late.compile(spec.kind, spec.source)
    assert not made.closed
    late.close()
    assert made.closed
