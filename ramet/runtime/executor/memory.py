"""How large the KV pool becomes: one formula, from plain numbers, and one honest error.

    pool_bytes  = max_total_tokens * kv_bytes_per_token                    --max-total-tokens given
                = fraction * total - used                                 --mem-fraction-static given
                = CPU_SHARE * free, at most CPU_LIMIT                     auto, on CPU
                = free - reserve                                          auto, on a GPU
    num_pages   = pool_bytes // (kv_bytes_per_token * page_size)

`total`, `used` and `free` describe the device after the weights were loaded; `used` counts weights and whatever else is there.
On CPU, memory is what the system calls available (never more than the control group's limit), `used` is the weights, and `total` is
both together. The automatic CPU share is small because a computer has other things to do than this.

    reserve = activations + logits + graphs + slots + 2 % of total
    activations = max_prefill_tokens * activation_bytes_per_token
    logits      = 3 * sampling rows * vocab_size * 4 bytes                 (logits, their sorted copy, probabilities)
    graphs      = 1 GiB where CUDA graphs are on
    slots       = max_running * slot_bytes                                 (of what guesses beside the model)

The same reserve must fit beside the pool whichever way the pool was sized on a GPU. No torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ramet.errors import OutOfMemory
from ramet.log import get_logger
from ramet.runtime.config import EngineConfig
from ramet.runtime.plan import Capacity, ModelInfo, most_sampling_rows

CPU_SHARE = 0.25
CPU_LIMIT = 8 << 30
GRAPH_BYTES = 1 << 30
SAFETY_SHARE = 0.02
MAX_RUNNING_CPU = 64
MAX_RUNNING_GPU = 512
LEAST_TOKENS = 256
"""A pool smaller than this (or than the context, where that is shorter) is refused unless it was asked for."""

_LOG = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes, after the weights were loaded."""

    total: int
    free: int

    @property
    def used(self) -> int:
        return self.total - self.free


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    capacity: Capacity
    pool_bytes: int
    reserve_bytes: int
    memory: DeviceMemory


def plan_memory(
    config: EngineConfig,
    model: ModelInfo,
    memory: DeviceMemory,
    *,
    on_gpu: bool,
    token_bytes: int,
    activation_bytes_per_token: int,
    slot_bytes: int = 0,
) -> MemoryPlan:
    """Apply the formula above. Raises `OutOfMemory` when the pool does not fit, or would be useless."""
    page_size = config.memory.page_size
    max_running = config.schedule.max_running_requests or (MAX_RUNNING_GPU if on_gpu else MAX_RUNNING_CPU)
    reserve = _reserve(config, model, memory, max_running, activation_bytes_per_token) + max_running * slot_bytes if on_gpu else 0
    wanted = _wanted_bytes(config, memory, reserve, token_bytes, on_gpu)
    num_pages = wanted // (token_bytes * page_size)
    least = 1 if config.memory.max_total_tokens is not None else min(LEAST_TOKENS, model.context_len)
    if wanted > memory.free - reserve or num_pages * page_size < least:
        raise _out_of_memory(config, model, memory, wanted, reserve, token_bytes, least)
    capacity = Capacity(num_pages, page_size, max_running)
    return MemoryPlan(capacity, num_pages * page_size * token_bytes, reserve, memory)


def log_plan(plan: MemoryPlan, model: ModelInfo, dtype: str) -> None:
    """The start log's memory lines."""
    capacity = plan.capacity
    _LOG.info("Weights: %s (%s parameters, %s)", _size(model.weight_bytes), f"{model.num_parameters:,}", model.dtype)
    _LOG.info(
        "KV cache: %s, %s tokens (%s pages of %d, %s), up to %d running requests",
        *(_size(plan.pool_bytes), f"{capacity.num_tokens:,}", f"{capacity.num_pages:,}", capacity.page_size, dtype, capacity.max_running),
    )
    left = plan.memory.free - plan.pool_bytes
    _LOG.info("Memory left: %s, of which %s are set aside for activations and graphs", _size(left), _size(plan.reserve_bytes))
    if capacity.num_tokens < model.context_len:
        _LOG.warning(
            "The KV cache holds %d tokens, less than the model's context of %d: longer requests are refused. Raise --max-total-tokens "
            "or --mem-fraction-static, or lower --context-length.",
            *(capacity.num_tokens, model.context_len),
        )


def measure_ram(weight_bytes: int) -> DeviceMemory:
    """Look at this machine's memory now. Call it after the weights were loaded."""
    free = available_ram()
    return DeviceMemory(free + weight_bytes, free)


def available_ram() -> int:
    """Bytes that can be allocated without swapping, within the control group's limit."""
    system = _meminfo_available()
    if system is None:
        system = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, current = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    return system if limit is None or current is None else min(system, max(limit - current, 0))


def _wanted_bytes(config: EngineConfig, memory: DeviceMemory, reserve: int, token_bytes: int, on_gpu: bool) -> int:
    options = config.memory
    if options.max_total_tokens is not None:
        pages = -(-options.max_total_tokens // options.page_size)
        return pages * options.page_size * token_bytes
    if options.mem_fraction_static is not None:
        return int(options.mem_fraction_static * memory.total) - memory.used
    return memory.free - reserve if on_gpu else min(int(CPU_SHARE * memory.free), CPU_LIMIT)


def _reserve(config: EngineConfig, model: ModelInfo, memory: DeviceMemory, max_running: int, activation_bytes_per_token: int) -> int:
    activations = config.schedule.max_prefill_tokens * activation_bytes_per_token
    logits = 3 * most_sampling_rows(max_running) * model.vocab_size * 4
    graphs = 0 if config.backend.disable_cuda_graph else GRAPH_BYTES
    return activations + logits + graphs + int(SAFETY_SHARE * memory.total)


def _out_of_memory(
    config: EngineConfig, model: ModelInfo, memory: DeviceMemory, wanted: int, reserve: int, token_bytes: int, least: int
) -> OutOfMemory:
    free = memory.free - reserve
    state = (
        f"{_size(memory.free)} are free beside {_size(model.weight_bytes)} of weights, {_size(reserve)} of that are set aside for "
        f"activations and graphs, and a token takes {_size(token_bytes)}"
    )
    fitting = int(max(free, 0) * 0.95) // token_bytes
    fraction_for = (memory.used + least * token_bytes * 1.1) / memory.total
    if wanted > free and config.memory.max_total_tokens is not None:
        asked = f"--max-total-tokens {config.memory.max_total_tokens} asks for {_size(wanted)} of KV cache"
        advice = f"lower it to {fitting}" if fitting else "use a smaller model or free memory"
    elif wanted > free and config.memory.mem_fraction_static is not None:
        asked = f"--mem-fraction-static {config.memory.mem_fraction_static} asks for {_size(wanted)} of KV cache"
        advice = f"lower it to {(memory.used + 0.95 * max(free, 0)) / memory.total:.2f}"
    elif free >= least * token_bytes and config.memory.mem_fraction_static is not None:
        asked = f"--mem-fraction-static {config.memory.mem_fraction_static} leaves {_size(max(wanted, 0))}, less than {least} tokens of KV"
        advice = f"raise it to {min(fraction_for + 0.01, 1.0):.2f}"
    elif free >= least * token_bytes:
        asked = f"the automatic KV cache of {_size(max(wanted, 0))} is less than {least} tokens"
        advice = f"ask for more with --max-total-tokens {min(fitting, max(least, model.context_len))}"
    else:
        asked = f"a KV cache of {least} tokens needs {_size(least * token_bytes)}"
        advice = "free memory, lower --max-prefill-tokens or --max-running-requests, or use a smaller model"
    return OutOfMemory(f"{asked}, but {state}: {advice}")


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_number(name: str) -> int | None:
    """A file of the unified control group; None without limit or where there is no such thing."""
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
