"""OpenVINO GenAI: its continuous-batching pipeline straight from the GGUF file, with the prefix cache on (it is off by default)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai as genai  # type: ignore[import-not-found]

from benchmarks.cpu.adapters.line_server import Prompts, serve

CACHE_GIB = 1
BATCH_TOKENS = 256  # its default


class OpenVinoPipeline:
    def __init__(self, model_path: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_batched_tokens = BATCH_TOKENS
        self._pipeline = genai.ContinuousBatchingPipeline(model_path, scheduler, "CPU")
        self.about: Mapping[str, Any] = {
            "version": version("openvino-genai"),
            "options": f"prefix cache on, {CACHE_GIB} GiB, {BATCH_TOKENS} tokens a step",
        }

    def generate(self, prompts: Prompts, limit: int, schema: Mapping[str, Any] | None) -> list[list[int]]:
        config = genai.GenerationConfig()
        config.do_sample = False
        config.max_new_tokens = limit
        config.ignore_eos = schema is None
        if schema is not None:
            config.structured_output_config = genai.StructuredOutputConfig(json_schema=json.dumps(schema))
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = self._pipeline.generate(tensors, [config] * len(tensors))
        return [list(map(int, result.m_generation_ids[0])) for result in results]


if __name__ == "__main__":
    serve(OpenVinoPipeline)
