"""uvicorn around the app: serves on a socket that is bound already, and says when it is ready."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from ramet.runtime.config import ServerConfig
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.server.app import build_app
from ramet.server.control import generate_one_token
from ramet.server.last_word import LastWord

__all__ = ["AnnouncingServer", "build_server", "generate_one_token"]

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 60


def build_server(engine: GenerationEngine, config: ServerConfig) -> AnnouncingServer:
    app = build_app(engine, config)
    options = uvicorn.Config(
        LastWord(app),
        log_config=None,
        access_log=config.engine.log.log_level in ("debug", "info"),
        backlog=BACKLOG,
        timeout_graceful_shutdown=config.http.timeout_graceful_shutdown,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    return AnnouncingServer(options, app.state.context.model_name)


class AnnouncingServer(uvicorn.Server):
    """Says, once requests are accepted, where and that the model is ready: launch scripts wait for these lines. (uvicorn leaves its
    own line out when it is handed a socket.)"""

    def __init__(self, config: uvicorn.Config, model_name: str) -> None:
        super().__init__(config)
        self._model_name = model_name

    def stop(self) -> None:
        """No new requests; running ones get their grace. Asked twice, they do not."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise a caught signal again after serving, which would end the process before the engine is closed."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in (sockets or []) if self.started else []:
            host, port = listener.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            logging.getLogger("uvicorn.error").info("Uvicorn running on http://%s:%d (Press CTRL+C to quit)", where, port)
        if self.started:
            logging.getLogger("uvicorn.error").info("Ramet Runtime initialized with model '%s'", self._model_name)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves this out, and the task that waits for it would end in a traceback
            await self.lifespan.shutdown()
