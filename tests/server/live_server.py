"""A real uvicorn on an ephemeral port, in a thread of this process, around any engine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from ramet.runtime.config import ServerConfig
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.server.app import build_app
from tests.waiting import PATIENCE, wait_until


@contextmanager
def live_server(engine: GenerationEngine, **options: Any) -> Iterator[str]:
    """The server's base URL; `options` are launch flags."""
    app = build_app(engine, ServerConfig.from_options(options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, timeout_keep_alive=int(PATIENCE)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server did not stop"
