"""The memory formula, from plain numbers; every value that an error recommends must work."""

from __future__ import annotations

import re

import pytest

from ramet.errors import OutOfMemory
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.memory import CPU_LIMIT, CPU_SHARE, DeviceMemory, MemoryPlan, available_ram, measure_ram, plan_memory
from ramet.runtime.plan import ModelInfo

GIB = 1 << 30
TOKEN = 40_000
MODEL = ModelInfo("m", "Test", 50_000, 8192, 30, 3, 64, 10**8, 5 * 10**8, TOKEN, "float32")


def plan(memory: DeviceMemory, *, on_gpu: bool = False, **options: object) -> MemoryPlan:
    config = EngineConfig.from_options({"disable_cuda_graph": False, **options})
    return plan_memory(config, MODEL, memory, on_gpu=on_gpu, token_bytes=TOKEN, activation_bytes_per_token=10_000)


def test_tokens_asked_for_are_rounded_up_to_pages() -> None:
    made = plan(DeviceMemory(10 * GIB, 9 * GIB), max_total_tokens=1001, page_size=16)
    assert made.capacity.num_tokens == 1008 and made.pool_bytes == 1008 * TOKEN


def test_auto_on_cpu_is_a_share_with_a_limit() -> None:
    small = plan(DeviceMemory(8 * GIB, 7 * GIB))
    assert CPU_SHARE * 7 * GIB - TOKEN < small.pool_bytes <= CPU_SHARE * 7 * GIB
    large = plan(DeviceMemory(800 * GIB, 700 * GIB))
    assert CPU_LIMIT - TOKEN < large.pool_bytes <= CPU_LIMIT


def test_fraction_is_of_weights_and_pool_together() -> None:
    made = plan(DeviceMemory(80 * GIB, 60 * GIB), on_gpu=True, mem_fraction_static=0.5)
    assert 20 * GIB - TOKEN < made.pool_bytes <= 20 * GIB


def test_auto_on_gpu_leaves_the_reserve() -> None:
    made = plan(DeviceMemory(80 * GIB, 60 * GIB), on_gpu=True)
    reserve = 16384 * 10_000 + 3 * 512 * 50_000 * 4 + GIB + int(0.02 * 80 * GIB)
    assert made.reserve_bytes == reserve
    assert 60 * GIB - reserve - TOKEN < made.pool_bytes <= 60 * GIB - reserve
    without_graphs = plan(DeviceMemory(80 * GIB, 60 * GIB), on_gpu=True, disable_cuda_graph=True)
    assert without_graphs.reserve_bytes == reserve - GIB


@pytest.mark.parametrize(
    ("memory", "on_gpu", "options"),
    [
        (DeviceMemory(10 * GIB, 9 * GIB), False, {"max_total_tokens": 10**6}),
        (DeviceMemory(10 * GIB, 9 * GIB), True, {"max_total_tokens": 10**6}),
        (DeviceMemory(80 * GIB, 60 * GIB), True, {"mem_fraction_static": 0.99}),
        (DeviceMemory(80 * GIB, 60 * GIB), True, {"mem_fraction_static": 0.2}),
        (DeviceMemory(10 * GIB, 9 * GIB), False, {"mem_fraction_static": 0.05}),
        (DeviceMemory(1 * GIB, 30 << 20), False, {}),
    ],
)
def test_the_error_recommends_a_value_that_works(memory: DeviceMemory, on_gpu: bool, options: dict[str, object]) -> None:
    with pytest.raises(OutOfMemory) as refused:
        plan(memory, on_gpu=on_gpu, **options)
    message = str(refused.value)
    assert "are free" in message and "a token takes 39.1 KiB" in message
    advice = message.rsplit(":", 1)[1]
    number = re.search(r"[\d.]+$", advice)
    assert number is not None, message
    flag = next(name for name in ("max_total_tokens", "mem_fraction_static") if "--" + name.replace("_", "-") in message)
    value: float = float(number[0]) if flag == "mem_fraction_static" else int(number[0])
    if "lower" in advice:
        assert value < float(str(options[flag]))
    mended = plan(memory, on_gpu=on_gpu, **{flag: value})
    assert mended.capacity.num_tokens > 0


def test_nothing_helps_when_nothing_is_free() -> None:
    with pytest.raises(OutOfMemory, match="use a smaller model"):
        plan(DeviceMemory(2 * GIB, 1 * GIB), on_gpu=True)


def test_this_machine_can_be_measured() -> None:
    assert available_ram() > 1 << 20
    measured = measure_ram(1000)
    assert measured.used == 1000
