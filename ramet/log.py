"""Logging: one place that configures it; every other module only asks for a logger."""

from __future__ import annotations

import logging

LEVELS = ("debug", "info", "warning", "error", "critical")
_FORMAT = "[%(asctime)s] %(levelname)s %(message)s"


def get_logger(name: str) -> logging.Logger:
    """Logger of a module; pass `__name__`."""
    return logging.getLogger(name)


def configure(level: str) -> None:
    """Send Ramet's log to stderr at `level`, one of `LEVELS`. Called once, by a process's entry point."""
    root = logging.getLogger("ramet")
    root.setLevel(level.upper())
    root.propagate = False
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)
