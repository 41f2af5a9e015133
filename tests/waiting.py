"""Waiting for what happens beside the test, on any thread or process: for the event itself, however busy the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds. Takes effect only where the event never comes."""


def wait_until(condition: Callable[[], object]) -> None:
    """Poll `condition` until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


async def until(condition: Callable[[], object]) -> None:
    """`wait_until` on an event loop, which goes on meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def turns(count: int = 20) -> None:
    """Let the event loop go round: enough for what is only passed on there from task to task, whatever the clock says."""
    for _ in range(count):
        await asyncio.sleep(0)
