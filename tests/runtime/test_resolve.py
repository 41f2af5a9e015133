"""Autos become values; contradictions are named."""

from __future__ import annotations

import pytest

from ramet.errors import ConfigError
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.worker_parts import WorkerSpec, flat_options
from ramet.runtime.plan import Capacity
from ramet.runtime.resolve import CHUNK_CPU, CHUNK_GPU, IDLE_CHUNK_CPU, check, resolve
from tests.fakes import FAKE_MODEL

CAPACITY = Capacity(num_pages=100, page_size=1, max_running=8)


def resolved(on_gpu: bool = False, **options) -> EngineConfig:
    return resolve(EngineConfig.from_options(options), FAKE_MODEL, CAPACITY, on_gpu=on_gpu)


def test_autos_become_values():
    config = resolved()
    assert (config.schedule.max_running_requests, config.memory.max_total_tokens) == (8, 100)
    assert config.schedule.chunked_prefill_size == CHUNK_CPU
    assert config.schedule.idle_chunked_prefill_size == IDLE_CHUNK_CPU
    assert resolved(chunked_prefill_size=256).schedule.idle_chunked_prefill_size is None
    assert resolved(on_gpu=True).schedule.chunked_prefill_size == CHUNK_GPU
    assert (config.model.context_length, config.model.served_model_name) == (FAKE_MODEL.context_len, "fake")
    assert config.schedule.schedule_policy == "program"
    assert resolved(disable_radix_cache=True).schedule.schedule_policy == "fcfs"


def test_what_was_given_stays():
    config = resolved(max_running_requests=3, chunked_prefill_size=-1, served_model_name="mine", schedule_policy="lof")
    assert (config.schedule.max_running_requests, config.schedule.chunked_prefill_size) == (3, -1)
    assert (config.model.served_model_name, config.schedule.schedule_policy) == ("mine", "lof")
    assert resolved(max_running_requests=100).schedule.max_running_requests == 8


@pytest.mark.parametrize(
    "options",
    [
        {"trust_remote_code": True},
        {"tp_size": 2, "quantization": "q8_0"},
        {"speculative_algorithm": "STANDALONE"},
        {"speculative_draft_model_path": "small"},
        {"speculative_algorithm": "STANDALONE", "speculative_draft_model_path": "small", "tp_size": 2},
        {
            "speculative_algorithm": "STANDALONE",
            "speculative_draft_model_path": "small",
            "speculative_num_steps": 3,
            "speculative_num_draft_tokens": 3,
        },
        {"speculative_algorithm": "EAGLE3"},
        {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": "head", "tp_size": 2},
        {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": "head", "speculative_draft_model_quantization": "int8"},
        {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": "head", "enable_hierarchical_cache": True},
        {"max_total_tokens": 8, "page_size": 16},
        {"disable_radix_cache": True, "schedule_policy": "dfs-weight"},
        {"chunked_prefill_size": 0},
        {"json_model_override_args": "{"},
        {"json_model_override_args": "[]"},
    ],
)
def test_contradictions_are_refused_before_anything_loads(options):
    with pytest.raises(ConfigError) as raised:
        check(EngineConfig.from_options(options))
    assert raised.value.param in options


@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 256), ({"page_size": 16}, 256), ({"page_size": 1024}, 1024), ({"context_length": 64}, 64)],
)
def test_a_pool_too_small_for_any_request_says_the_least(options, least):
    with pytest.raises(ConfigError, match=f"max_total_tokens={least - 1}: .* the least is {least}") as raised:
        check(EngineConfig.from_options(options | {"max_total_tokens": least - 1}))
    assert raised.value.param == "max_total_tokens"
    check(EngineConfig.from_options(options | {"max_total_tokens": least}))


@pytest.mark.parametrize("options", [{"context_length": 99_999}, {"page_size": 16}])
def test_contradictions_with_what_was_loaded(options):
    with pytest.raises(ConfigError) as raised:
        resolved(**options)
    assert raised.value.param in options


def test_a_config_survives_the_way_to_the_worker():
    config = EngineConfig.from_options({"page_size": 16, "model_path": "x", "schedule_policy": "fcfs", "watchdog_timeout": 5.5})
    assert EngineConfig.from_options(flat_options(config)) == config
    spec = WorkerSpec(config, "a:b", "c:d")
    assert WorkerSpec.from_json(spec.to_json()) == spec
    with pytest.raises(TypeError, match="by name"):
        WorkerSpec(config, lambda config: None).to_json()
