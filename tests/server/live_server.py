"""A real uvicorn on an ephemeral port, in a thread of this process, around any engine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from ramet.runtime.config import ServerConfig
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.server.app import build_app

START_SECONDS = 20.0


@contextmanager
def live_server(engine: GenerationEngine, **options: Any) -> Iterator[str]:
    """The server's base URL; `options` are launch flags."""
    app = build_app(engine, ServerConfig.from_options(options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_SECONDS)
            assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    """Poll `condition` until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
