"""The one door from the language to the runtime: an in-process engine as backend. Nothing here loads before it is used."""

from __future__ import annotations

from typing import Any

from ramet.runtime.engine.program_backend import EngineBackend

__all__ = ["EngineBackend", "engine_backend"]


def engine_backend(engine: Any) -> EngineBackend:
    """Over an `Engine`, which lives as long as its backend, or a bare `GenerationEngine`."""
    return EngineBackend(getattr(engine, "async_engine", engine), owner=engine)


def __getattr__(name: str) -> Any:
    if name == "Engine":
        import ramet.runtime.engine.engine as module

        return module.Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
