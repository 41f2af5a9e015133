"""The engine promises an iterator; whoever wants to close it early needs a generator."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def as_generator(items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """`items`, closed when this generator is closed."""
    try:
        async for item in items:
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
