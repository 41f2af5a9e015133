"""A scripted backend whose generations take long by the event loop, not by the clock: what can run beside them does, on any machine."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ramet.program.backend import GenerateCall, GenerateChunk
from ramet.program.scripted import ScriptedBackend
from tests.waiting import turns

NUM_TURNS = 50


class Unhurried(ScriptedBackend):
    """Every chunk takes `NUM_TURNS` turns of the loop."""

    async def _speak(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        async for chunk in super()._speak(call):
            await turns(NUM_TURNS)
            yield chunk
