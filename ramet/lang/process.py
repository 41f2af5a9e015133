"""What SGLang's interface makes process-wide: the default backend, and the runner of sync callers. Nothing else in `lang` is global."""

from __future__ import annotations

import atexit
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from ramet.errors import ConfigError
from ramet.lang.runner import Runner, wait_for
from ramet.program.backend import Backend


@dataclass(slots=True)
class _Process:
    default_backend: Backend | None = None
    runner: Runner | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_process = _Process()

_run_backend: ContextVar[Backend | None] = ContextVar("ramet_run_backend", default=None)
"""The backend of the program that is running: nested programs inherit it."""


def set_default_backend(backend: Any) -> None:
    """Use `backend` wherever none is given: a `Runtime`, `RuntimeEndpoint`, `Engine`, `OpenAI`, or any `ramet.program.backend.Backend`."""
    _process.default_backend = as_backend(backend)


set_default_runtime = set_default_backend


def as_backend(value: Any) -> Backend:
    """A `Runtime` carries its backend as an attribute, an engine is wrapped in one, everything else is one."""
    found = getattr(value, "backend", value)
    if not hasattr(found, "chat_format") and (hasattr(found, "async_engine") or hasattr(found, "chat_template")):
        from ramet.lang.engine_door import engine_backend

        return engine_backend(found)
    if not callable(getattr(found, "generate", None)) or not callable(getattr(found, "chat_format", None)):
        raise ConfigError(
            f"{value!r} is no backend: give a Runtime, RuntimeEndpoint, Engine, OpenAI, or an object with the Backend methods"
        )
    return cast(Backend, found)


def current_backend(given: Any = None) -> Backend:
    if given is not None:
        return as_backend(given)
    found = _run_backend.get() or _process.default_backend
    if found is None:
        raise ConfigError("no backend: call sgl.set_default_backend(sgl.Runtime(endpoint='http://localhost:30000')), or pass backend=…")
    return found


def enter_backend(backend: Backend) -> None:
    _run_backend.set(backend)


def runner() -> Runner:
    with _process.lock:
        if _process.runner is None:
            _process.runner = Runner()
            atexit.register(_process.runner.stop)
        return _process.runner


def flush_cache(backend: Any = None) -> None:
    """Empty the backend's prefix cache."""
    found = current_backend(backend)
    wait_for(runner().loop, lambda: found.flush_cache())


def get_server_info(backend: Any = None) -> dict[str, Any]:
    """What the backend says about itself: model, limits, flags."""
    found = current_backend(backend)
    return wait_for(runner().loop, lambda: found.server_info())
