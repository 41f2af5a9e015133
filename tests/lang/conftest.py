"""Every behaviour of the language holds however a program is executed: tests of the modules below run twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ramet.lang import launch_run
from tests.fakes import fake_engine
from tests.server.live_server import live_server

TWICE = frozenset({"test_behaviours", "test_states", "test_styles", "test_cancellation", "test_live_runs", "test_backends"})
MODES = ("interpreted", "auto")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in TWICE and "default_mode" in metafunc.fixturenames:
        metafunc.parametrize("default_mode", MODES, indirect=True)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server over an engine without a model."""
    engine = fake_engine()
    with live_server(engine) as url:
        yield url
    engine.close_now()


@pytest.fixture(autouse=True)
def default_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What mode="auto" means in this test: compile what compiles, or interpret everything."""
    wanted = str(getattr(request, "param", "auto"))
    real = launch_run.choose_strategy

    def choose(program: Any, mode: Any, backend: Any) -> Any:
        return real(program, wanted if mode == "auto" else mode, backend)

    monkeypatch.setattr(launch_run, "choose_strategy", choose)
    return wanted
