"""Fields that a request may name and this server cannot honour: refused by name, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ramet.errors import Unsupported


def refuse(body: BaseModel, reasons: Mapping[str, str], *, asks_nothing: Sequence[Any] = (None,)) -> None:
    """Raises `Unsupported` for the first of the fields that is none of the values that ask for nothing."""
    for name, reason in reasons.items():
        if getattr(body, name) not in asks_nothing:
            raise Unsupported(f"{name}: {reason}", param=name)
