"""Stepping through an async iterator from sync code."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

DONE: Any = object()
"""The end of an iteration, where a coroutine may not raise StopIteration."""


async def next_or_done(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, DONE)
