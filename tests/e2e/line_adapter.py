"""An engine for the tests of the CPU benchmark: counts upwards from the last token of a prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from benchmarks.cpu.adapters.line_server import Prompts, serve

THROWS, DIES, FALLS_SHORT = 901, 902, 903
"""A prompt that ends with one of these brings it about."""


class CountingEngine:
    def __init__(self, model_path: str) -> None:
        os.write(1, b"native code writes to stdout\n")
        self.about: Mapping[str, Any] = {"version": "1", "options": model_path}

    def generate(self, prompts: Prompts, limit: int, schema: Mapping[str, Any] | None) -> list[list[int]]:
        last = prompts[0][-1]
        if last == THROWS:
            raise ValueError("no such grammar")
        if last == DIES:
            os._exit(3)
        count = limit - 1 if last == FALLS_SHORT else limit
        return [[prompt[-1] + step for step in range(1, count + 1)] for prompt in prompts]


if __name__ == "__main__":
    serve(CountingEngine)
