"""Ramet as a script uses it: `Engine` with every option at its default, the worker in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.cpu.adapters.line_server import Prompts, serve
from ramet.runtime.engine.engine import Engine
from ramet.version import __version__


class RametEngine:
    def __init__(self, model_path: str) -> None:
        self._engine = Engine(model_path)
        info = self._engine.get_server_info()
        self.about: Mapping[str, Any] = {
            "version": __version__,
            "options": "defaults",
            "kv_tokens": info["max_total_num_tokens"],
            "kv_bytes_per_token": info["model"]["kv_bytes_per_token"],
        }

    def generate(self, prompts: Prompts, limit: int, schema: Mapping[str, Any] | None) -> list[list[int]]:
        how = {"ignore_eos": True} if schema is None else {"json_schema": json.dumps(schema)}
        replies = self._engine.generate(input_ids=prompts, sampling_params={"temperature": 0, "max_new_tokens": limit, **how})
        assert isinstance(replies, list)
        return [list(reply["output_ids"]) for reply in replies]


if __name__ == "__main__":
    serve(RametEngine)
