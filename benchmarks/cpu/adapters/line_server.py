"""The protocol between the benchmark and an engine's process: one JSON object a line, questions on stdin, answers on stdout.

    ← {"ready": {…}}                                             the engine is up and has generated one token
    → {"prompts": [[1, 2, …], …], "limit": 128, "schema": null}  all prompts at once, greedy
    ← {"seconds": 1.9, "output_ids": [[…], …]}                   or {"error": "…"}

Standard library only: this runs in the peers' environment too. Whatever an engine itself prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Protocol

Prompts = Sequence[Sequence[int]]


class Adapter(Protocol):
    """One engine in this process. `about`: its version and how it was set up, for the report."""

    about: Mapping[str, Any]

    def generate(self, prompts: Prompts, limit: int, schema: Mapping[str, Any] | None) -> list[list[int]]:
        """The output tokens of every prompt, all run concurrently, greedy: exactly `limit` tokens each; under a JSON schema until the
        document is complete, and `limit` at most. A prefix that was seen before may come from the engine's cache."""
        ...


def serve(make: Callable[[str], Adapter]) -> None:
    """Answer until stdin ends. The model's path is the program's only argument."""
    answers = _private_stdout()
    adapter = make(sys.argv[1])
    adapter.generate([[1, 2, 3, 4]], 1, None)
    _write(answers, {"ready": dict(adapter.about)})
    for line in sys.stdin:
        _write(answers, _answer(adapter, json.loads(line)))


def _answer(adapter: Adapter, question: Mapping[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        output_ids = adapter.generate(question["prompts"], question["limit"], question["schema"])
    except Exception as error:  # whatever a peer throws is an entry of the table, not the end of the run
        return {"error": f"{type(error).__name__}: {error}"}
    return {"seconds": time.perf_counter() - began, "output_ids": output_ids}


def _private_stdout() -> IO[str]:
    """The real stdout, for answers alone: the descriptor that native code writes to becomes stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _write(answers: IO[str], message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
