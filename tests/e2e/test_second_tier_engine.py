"""KV on disk outlives the worker that computed it, on the embedded model: the same tokens, and most of the prompt is not computed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.errors import ConfigError
from ramet.runtime.cache import second_tier
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.engine import Engine
from ramet.runtime.executor.default_executor import create_executor
from ramet.runtime.executor.executor import Executor
from tests.waiting import PATIENCE

pytestmark = pytest.mark.model
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
PLANTS = ("fern", "moss", "bark", "leaf", "stem") * 7
RULES = "Work in small steps. " + " ".join(f"Shelf {number} holds the {word}." for number, word in enumerate(PLANTS))
QUESTIONS = ("Where is the moss?", "Where is the bark?")


def patiently(config: EngineConfig) -> AsyncEngine:
    return AsyncEngine.start_now(config, executor_factory=f"{__name__}:patient_executor")


def patient_executor(config: EngineConfig) -> Executor:
    """In a worker that waits for its disk however long that takes: how long is worth while is measured, and here it is no matter."""
    second_tier._FIRST_PATIENCE_SECONDS = PATIENCE
    return create_executor(config)


def answers(**options: object) -> tuple[list[list[int]], list[int]]:
    """Output tokens and cached tokens of every question."""
    with Engine(start=patiently, max_total_tokens=2048, enable_deterministic_inference=True, log_level="warning", **options) as engine:
        replies = [engine.generate(RULES + question, GREEDY) for question in QUESTIONS]
    return [reply["output_ids"] for reply in replies], [reply["meta_info"]["cached_tokens"] for reply in replies]


def test_a_restarted_engine_goes_on_from_disk_with_the_same_tokens(tmp_path: Path) -> None:
    tier = {"enable_hierarchical_cache": True, "hicache_storage_backend": "file", "hicache_storage_dir": str(tmp_path)}
    without, computed = answers()
    first, first_cached = answers(**tier)
    again, again_cached = answers(**tier)
    _, other_cached = answers(**tier, kv_cache_dtype="float32")
    assert first == without and again == without
    assert first_cached == computed and computed[0] == 0
    assert again_cached[0] >= 256 and again_cached[0] % 64 == 0
    assert other_cached[0] == 0, "KV of another type was taken"


def test_a_cpu_without_files_has_no_use_for_a_second_tier() -> None:
    with pytest.raises(ConfigError, match="hicache-storage-backend file"):
        Engine(enable_hierarchical_cache=True, log_level="warning")
