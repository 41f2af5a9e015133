"""Ports, readiness lines and the server's end, without a model."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from typing import Any

import httpx
import pytest

import ramet as sgl
from ramet.cli import serve
from ramet.cli.main import main
from ramet.errors import ConfigError, ServerStopping, WorkerDied
from ramet.runtime.config import EngineConfig, HttpConfig, ServerConfig
from ramet.server.announcing_server import build_server
from tests.server.scripted_engine import ScriptedEngine
from tests.waiting import PATIENCE, until, wait_until


def test_a_taken_port_is_an_error_before_the_model_loads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "configure_logging", lambda level: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model-path", "/nowhere"]) == 2
    message = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}" in message
    assert "--port" in message


def test_until_ready_clients_are_refused_not_left_hanging() -> None:
    with serve.bind(HttpConfig(port=0)) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname(), timeout=1)


def test_bad_host() -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        serve.bind(HttpConfig(host="203.0.113.9", port=0))


async def test_readiness_lines_and_orderly_stop(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="uvicorn.error")
    with serve.bind(HttpConfig(port=0)) as listener:
        server = build_server(ScriptedEngine(), ServerConfig.from_options({"served_model_name": "mine"}))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        port = listener.getsockname()[1]
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
        server.stop()
        await asyncio.wait_for(running, PATIENCE)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(f"Uvicorn running on http://127.0.0.1:{port}") for line in lines)
    assert "Ramet Runtime initialized with model 'mine'" in lines


async def test_what_a_stop_cuts_off_ends_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A stream gets it as its last event, a request without an answer as a 503; no connection is torn, nothing is logged as a crash."""
    engine = ScriptedEngine(answer="x" * 400, step_seconds=0.2)
    with serve.bind(HttpConfig(port=0)) as listener:
        server = build_server(engine, ServerConfig.from_options({"timeout_graceful_shutdown": 0}))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/generate"
        body = {"text": "Go", "sampling_params": {"max_new_tokens": 400}}
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            whole = asyncio.create_task(client.post(url, json=body))
            async with client.stream("POST", url, json=body | {"stream": True}) as stream:
                lines = stream.aiter_lines()
                assert (await anext(lines)).startswith("data: {")
                await until(lambda: len(engine.seen) == 2)
                server.stop()
                events = [line async for line in lines if line]
            reply = await whole
        await asyncio.wait_for(running, PATIENCE)
    assert events[-1] == "data: [DONE]" and '"code":"server_stopping"' in events[-2]
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_stopping")
    assert not [record for record in caplog.records if record.exc_info]
    assert len(engine.aborted) == 2


@sgl.function
def long_program(s: Any) -> None:
    s += "Go" + sgl.gen("x", max_tokens=400)


@pytest.mark.parametrize("mode", ["compiled", "interpreted"])
async def test_a_program_that_a_stop_cuts_off_says_so(mode: str) -> None:
    engine = ScriptedEngine(answer="x" * 400, step_seconds=0.2)
    with serve.bind(HttpConfig(port=0)) as listener:
        server = build_server(engine, ServerConfig.from_options({"timeout_graceful_shutdown": 0}))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        backend = sgl.RuntimeEndpoint(f"http://127.0.0.1:{listener.getsockname()[1]}")
        program = asyncio.create_task(long_program.arun(backend=backend, mode=mode))
        await until(lambda: len(engine.seen) == 1)
        server.stop()
        with pytest.raises(ServerStopping, match="told to stop"):
            await program
        await asyncio.wait_for(running, PATIENCE)


def test_readiness_lines_pass_every_log_level() -> None:
    strict = serve._Verbosity("warning")

    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("uvicorn.error", logging.INFO, "", 0, text, None, None)

    assert strict.filter(record("Uvicorn running on http://x (Press CTRL+C to quit)"))
    assert strict.filter(record("Ramet Runtime initialized with model 'x'"))
    assert not strict.filter(record("Application startup complete."))


class Started:
    """Stands in for `AsyncEngine`: `start` gives a scripted engine, at once or after `delay`."""

    def __init__(self, delay: float = 0.0) -> None:
        self.engine = ScriptedEngine()
        self.delay = delay
        self.closed = False
        self.on_end: Any = None

    async def start(self, config: EngineConfig, *, on_end: Any) -> ScriptedEngine:
        self.on_end = on_end
        await asyncio.sleep(self.delay)
        monkey: Any = self.engine
        monkey.close = self._close
        return self.engine

    async def _close(self) -> None:
        self.closed = True


async def serve_until_ready(started: Started, monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> asyncio.Task[int]:
    monkeypatch.setattr(serve, "AsyncEngine", started)
    running = asyncio.create_task(serve._serve(ServerConfig(), listener))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/health"

    def ready() -> bool:
        try:
            return httpx.get(url, timeout=PATIENCE).status_code == 200
        except httpx.ConnectError:
            return False

    await asyncio.to_thread(wait_until, ready)
    return running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_in_order(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started()
    with serve.bind(HttpConfig(port=0)) as listener:
        running = await serve_until_ready(started, monkeypatch, listener)
        assert started.engine.finished, "the warm-up ran"
        os.kill(os.getpid(), number)
        assert await asyncio.wait_for(running, PATIENCE) == 0
    assert started.closed


async def test_a_signal_while_loading_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(delay=1000.0)
    monkeypatch.setattr(serve, "AsyncEngine", started)
    with serve.bind(HttpConfig(port=0)) as listener:
        running = asyncio.create_task(serve._serve(ServerConfig(), listener))
        await until(lambda: started.on_end is not None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(running, PATIENCE) == serve.STOPPED_EARLY


async def test_an_engine_that_ends_while_loading_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(delay=1000.0)
    monkeypatch.setattr(serve, "AsyncEngine", started)
    with serve.bind(HttpConfig(port=0)) as listener:
        running = asyncio.create_task(serve._serve(ServerConfig(), listener))
        await until(lambda: started.on_end is not None)
        await asyncio.to_thread(started.on_end, ConfigError("no such device"))
        with pytest.raises(ConfigError, match="no such device"):
            await asyncio.wait_for(running, PATIENCE)


async def test_the_engines_end_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started()
    with serve.bind(HttpConfig(port=0)) as listener:
        running = await serve_until_ready(started, monkeypatch, listener)
        await asyncio.to_thread(started.on_end, WorkerDied("gone"))
        assert await asyncio.wait_for(running, PATIENCE) == 1
    assert started.closed
