"""Every example runs to its end on the fake backend."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.lang.process import _process

FOLDER = Path(__file__).parents[2] / "examples"
SAYS = {
    "chat": "(5 messages)",
    "classification": "%  I was charged",
    "extraction": "Invoice(",
    "judge": "Overall:",
    "quickstart": "parsed:",
    "rag_map_reduce": "notes:",
    "react": "Answer:",
    "self_consistency": "answer:",
    "skeleton_of_thought": "## ",
    "streaming": "a snail",
    "tree_of_thought": "Answer:",
}


@pytest.fixture(autouse=True)
def _own_default_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = _process.default_backend
    yield
    _process.default_backend = before
    sys.modules.pop("connect", None)


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--fake"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nHow are you?\n\n"))
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out


def test_every_example_is_listed() -> None:
    programs = {path.stem for path in FOLDER.glob("*.py") if "from connect import" in path.read_text()}
    assert programs == set(SAYS)
