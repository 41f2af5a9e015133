"""Every example compiles, quickly, and runs to its end: on the scripted backend, and on a server over the fake executor."""

from __future__ import annotations

import asyncio
import io
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ramet as sgl
from ramet.lang.compilation import Compilation, Prepared
from ramet.lang.process import _process
from ramet.wire.codec import decode

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

NOISE_SAYS = {"quickstart": "prompt tokens cached]"}
"""Where noise, cut short, does not come as far as the scripted backend."""


@pytest.fixture(autouse=True)
def _own_default_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = _process.default_backend
    yield
    _process.default_backend = before
    sys.modules.pop("connect", None)


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nHow are you?\n\n"))
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.parametrize("on_server", [False, True])
def test_example(name: str, on_server: bool, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(name, ["--endpoint", url] if on_server else ["--fake"], monkeypatch)
    said = capsys.readouterr().out
    assert (NOISE_SAYS.get(name, SAYS[name]) if on_server else SAYS[name]) in said
    programs = [value for value in found.values() if isinstance(value, sgl.Function)]
    assert programs and all(program.explain().compiled for program in programs)


COMPILE_SECONDS, REGISTER_SECONDS = 0.050, 0.100
"""Of processor time, where Python is as quick as on a machine with nothing else to do: busy cores that share a cache are slower."""
REFERENCE_SECONDS = 0.006


def test_compiling_and_registering_are_quick(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, lines = sgl.RuntimeEndpoint(url), []
    for name in SAYS:
        for program in run(name, ["--fake"], monkeypatch).values():
            if isinstance(program, sgl.Function):
                compiling, registering = _timed(program, endpoint)
                lines.append(f"{name}.{program.__name__}: compiled in {compiling * 1000:.1f} ms, registered in {registering * 1000:.1f} ms")
                slower = max(1.0, _reference() / REFERENCE_SECONDS)
                assert compiling < COMPILE_SECONDS * slower and registering < REGISTER_SECONDS * slower, lines[-1]
    with capsys.disabled():
        print("", *lines, sep="\n")


def _reference() -> float:
    """Processor time of a piece of Python that is always the same, right now."""
    began, found = time.thread_time(), {}
    for number in range(10_000):
        found[str(number)] = [number, number % 7]
    sorted(found, key=lambda name: found[name][1])
    return time.thread_time() - began


def _timed(program: sgl.Function, endpoint: sgl.RuntimeEndpoint) -> tuple[float, float]:
    """The best of three: compiling; registering with its round trip, on both sides, without what compiling a grammar takes."""
    times = []
    for _ in range(3):
        began = time.thread_time()
        prepared = Compilation(program.function, program.ambient).get()
        times.append(time.thread_time() - began)
    return min(times), asyncio.run(_registering(endpoint, prepared))


async def _registering(endpoint: sgl.RuntimeEndpoint, prepared: Prepared) -> float:
    await endpoint.programs.register(prepared.digest, prepared.encoded)  # connects, compiles the grammars
    times = []
    for _ in range(3):
        began = time.process_time()
        decode(prepared.encoded, prepared.digest)  # the server's own share, which a known digest skips
        await endpoint.programs.register(prepared.digest, prepared.encoded)
        times.append(time.process_time() - began)
    return min(times)


def test_every_example_is_listed() -> None:
    programs = {path.stem for path in FOLDER.glob("*.py") if "from connect import" in path.read_text()}
    assert programs == set(SAYS)
