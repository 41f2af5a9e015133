"""`ramet serve`: bind the port, load the model, serve until told to stop."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ramet import log
from ramet.cli.flags import flags_markdown, parse_config
from ramet.errors import ConfigError, RametError
from ramet.runtime.config import HttpConfig, ServerConfig
from ramet.runtime.engine.async_engine import AsyncEngine

logger = log.get_logger(__name__)

DESCRIPTION = "Serve a model over HTTP. Without --model-path, the embedded SmolLM2-135M-Instruct."
FRONT = "ramet.server.announcing_server"
READINESS = ("Uvicorn running on", "Ramet Runtime initialized with model")
STOPPED_EARLY = 130


def run(arguments: Sequence[str]) -> int:
    if "--help-markdown" in arguments:
        print(flags_markdown(ServerConfig), end="")
        return 0
    config = parse_config(ServerConfig, arguments, program="ramet serve", description=DESCRIPTION)
    configure_logging(config.engine.log.log_level)
    with bind(config.http) as listener:
        return run_loop(_serve(config, listener))


def run_loop(work: Coroutine[Any, Any, int]) -> int:
    """On uvloop where there is one."""
    factory = importlib.import_module("uvloop").new_event_loop if importlib.util.find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


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


async def _serve(config: ServerConfig, listener: socket.socket) -> int:
    """Exit status 0 after an orderly stop, 1 when the worker died and is not to be restarted, 130 when stopped before being ready. An
    engine that ends before it is ready raises why."""
    end = End(asyncio.get_running_loop())
    end.catch_signals()
    try:  # the front's modules, a second of imports, load while the worker does
        starting = AsyncEngine.start(config.engine, on_end=end.report)
        engine, front = await asyncio.gather(starting, asyncio.to_thread(importlib.import_module, FRONT))
    except asyncio.CancelledError:
        return end.early("Stopped while the model was loading")
    try:
        if not config.engine.supervision.skip_server_warmup:
            await front.generate_one_token(engine)
        server = front.build_server(engine, config)
        end.stop, end.serving = server.stop, True
        await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        return end.early("Stopped while warming up")
    finally:
        await engine.close()
    return 1 if end.error else 0


class End:
    """Brings the wish to stop, a signal's or the engine's, to whatever is going on: first the start, which is cancelled, then the
    server, which finishes what runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task()
        assert task is not None, "made inside the task that it may cancel"
        self.error: RametError | None = None
        self.serving = False
        self.stop: Callable[[], object] = task.cancel
        self._loop = loop

    def catch_signals(self) -> None:
        """The first SIGINT or SIGTERM stops in order."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, lambda: self.stop())

    def report(self, error: RametError) -> None:
        """The engine's last word, from a thread of its own."""
        self.error = error
        if self.serving:
            logger.error("The engine has ended, the server stops: %s", error.message)
        self._loop.call_soon_threadsafe(lambda: self.stop())

    def early(self, where: str) -> int:
        """When stopped before being ready: raises the engine's error if that is why, else the status of an interrupted command."""
        if self.error is not None:
            raise self.error
        logger.warning(where)
        return STOPPED_EARLY


class _Verbosity(logging.Filter):
    """Lets pass what is loud enough, and the two lines that say the server is ready: they are asked for at every level."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self._level: int = logging.getLevelNamesMapping()[level.upper()]

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level or record.getMessage().startswith(READINESS)


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
