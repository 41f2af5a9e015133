"""`ramet serve`: bind the port, load the model, serve until told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

from ramet import log
from ramet.cli.flags import flags_markdown, parse_config
from ramet.errors import ConfigError
from ramet.runtime.config import HttpConfig, ServerConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.server.app import build_app
from ramet.server.control import generate_one_token

logger = log.get_logger(__name__)

DESCRIPTION = "Serve a model over HTTP. Without --model-path, the embedded SmolLM2-135M-Instruct."
READY = "Ramet Runtime initialized with model"
UVICORN_READY = "Uvicorn running on"
BACKLOG = 2048


def run(arguments: Sequence[str]) -> int:
    if "--help-markdown" in arguments:
        print(flags_markdown(ServerConfig), end="")
        return 0
    config = parse_config(ServerConfig, arguments, program="ramet serve", description=DESCRIPTION)
    configure_logging(config.engine.log.log_level)
    with bind(config.http) as listener:
        asyncio.run(_serve(config, listener))
    return 0


def bind(http: HttpConfig) -> socket.socket:
    """Take the port before the model loads, without listening yet: clients are refused, not left hanging, until the server is ready."""
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((http.host, http.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {http.host}:{http.port}: {error.strerror}; choose another --port (0: any free one) or --host",
            param="port",
        ) from error
    return listener


async def _serve(config: ServerConfig, listener: socket.socket) -> None:
    engine = await AsyncEngine.start(config.engine)
    try:
        if not config.engine.supervision.skip_server_warmup:
            await generate_one_token(engine)
        await _serve_http(engine, config, listener)
    finally:
        await engine.close()


async def _serve_http(engine: GenerationEngine, config: ServerConfig, listener: socket.socket) -> None:
    """uvicorn turns SIGINT and SIGTERM into an orderly end: no new requests, running ones get their grace, then we return."""
    app = build_app(engine, config)
    options = uvicorn.Config(
        app,
        log_config=None,
        access_log=config.engine.log.log_level in ("debug", "info"),
        backlog=BACKLOG,
        timeout_graceful_shutdown=config.http.timeout_graceful_shutdown,
        timeout_keep_alive=60,
    )
    server = AnnouncingServer(options, app.state.context.model_name)
    await server.serve(sockets=[listener])


class AnnouncingServer(uvicorn.Server):
    """Says, once requests are accepted, that the model is ready: launch scripts wait for this line."""

    def __init__(self, config: uvicorn.Config, model_name: str) -> None:
        super().__init__(config)
        self._model_name = model_name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            logging.getLogger("uvicorn.error").info("%s '%s'", READY, self._model_name)


class _Verbosity(logging.Filter):
    """Lets pass what is loud enough, and the two lines that say the server is ready: they are asked for at every level."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self._level: int = logging.getLevelNamesMapping()[level.upper()]

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level or record.getMessage().startswith((UVICORN_READY, READY))


def configure_logging(level: str) -> None:
    """Ramet's log and uvicorn's to stderr, in one format."""
    log.configure(level)
    verbosity = _Verbosity(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        theirs: Any = logging.getLogger(name)
        theirs.setLevel("INFO")
        theirs.propagate = name == "uvicorn.error"
        theirs.handlers = []
    for name in ("uvicorn", "uvicorn.access"):
        handler = logging.StreamHandler()
        handler.addFilter(verbosity)
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logging.getLogger(name).addHandler(handler)
