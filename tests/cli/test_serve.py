"""Ports, readiness lines and the server's end, without a model."""

from __future__ import annotations

import asyncio
import logging
import socket

import httpx
import pytest

from ramet.cli import serve
from ramet.cli.main import main
from ramet.errors import ConfigError, WorkerDied
from ramet.runtime.config import HttpConfig, ServerConfig
from tests.server.live_server import wait_until
from tests.server.scripted_engine import ScriptedEngine


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
        server = serve.build_server(ScriptedEngine(), ServerConfig.from_options({"served_model_name": "mine"}))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await asyncio.to_thread(wait_until, lambda: server.started)
        port = listener.getsockname()[1]
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
        server.stop()
        await asyncio.wait_for(running, 10)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(f"Uvicorn running on http://127.0.0.1:{port}") for line in lines)
    assert "Ramet Runtime initialized with model 'mine'" in lines


def test_readiness_lines_pass_every_log_level() -> None:
    strict = serve._Verbosity("warning")

    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("uvicorn.error", logging.INFO, "", 0, text, None, None)

    assert strict.filter(record("Uvicorn running on http://x (Press CTRL+C to quit)"))
    assert strict.filter(record("Ramet Runtime initialized with model 'x'"))
    assert not strict.filter(record("Application startup complete."))


async def test_the_engines_end_stops_the_server() -> None:
    end = serve.EngineEnd(asyncio.get_running_loop())
    stopped = asyncio.Event()
    end.stop = stopped.set
    await asyncio.to_thread(end.report, WorkerDied("gone"))
    await asyncio.wait_for(stopped.wait(), 2)
    assert end.reported
