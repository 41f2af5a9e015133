"""The executor that computes: one model, one KV pool, one thread that talks to the device.

The thread runs steps in the order of their `launch`. Torch lets other threads run Python while it computes, so that the next step is
planned and grammar masks are filled meanwhile. On a GPU the thread only queues work on its own stream; `result()` waits for
an event behind the copy of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Protocol

import torch

from ramet.errors import ConfigError, OutOfMemory
from ramet.log import get_logger
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.computation import Computation, load_computation
from ramet.runtime.executor.eagle_runner import EagleRunner
from ramet.runtime.executor.executor import PendingResult, Rank
from ramet.runtime.executor.gpu_warm_up import warm_up
from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.executor.kv_pool import allocate_pool, kv_bytes_per_token
from ramet.runtime.executor.memory import DeviceMemory, log_plan, measure_ram, plan_memory
from ramet.runtime.executor.page_mover import PageMover, make_page_mover
from ramet.runtime.executor.queued_steps import QueuedSteps
from ramet.runtime.executor.race_choice import RaceChoice
from ramet.runtime.executor.step_runner import FastPath, Forward, StepRunner
from ramet.runtime.executor.token_choice import TokenChoice
from ramet.runtime.executor.torch_choice import TorchChoice
from ramet.runtime.host_memory import HostMemory
from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.model_files import locate_model
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, StepResult, TokenMasks

_LOG = get_logger(__name__)


class TorchExecutor:
    """Implements `executor.Executor`. `num_threads`: torch's threads on CPU; None leaves torch's choice, one per physical core. `head`:
    guesses what comes next, in steps of its own; None where there is no such thing."""

    def __init__(
        self,
        forward: Forward,
        model: ModelInfo,
        capacity: Capacity,
        device: torch.device,
        *,
        num_threads: int | None = None,
        fast_path: Callable[[SlotTables], FastPath] | None = None,
        ranks: RankGroup | None = None,
        mover: PageMover | None = None,
        choice: TokenChoice[torch.Tensor] | None = None,
        one_by_one: bool = False,
        head: EagleRunner | None = None,
    ) -> None:
        self._model, self._capacity = model, capacity
        runner = StepRunner(forward, model, capacity, device, fast_path, ranks, mover, choice, one_by_one, head)
        self.host_memory: HostMemory | None = mover
        self.on_gpu = device.type == "cuda"
        self.prepared_sizes = runner.prepared_sizes
        """Numbers of decoding rows that have, or get, a recording of their own."""
        initializer = None if num_threads is None else (lambda: torch.set_num_threads(num_threads))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ramet-device", initializer=initializer)
        around = _around_halves(device)
        self._steps = QueuedSteps[Readback](runner, self._thread, PendingStep, around)
        self.head = None if head is None else QueuedSteps[Readback](head, self._thread, PendingStep, around)

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def launch(self, plan: BatchPlan) -> None:
        self._steps.launch(plan)

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        return self._steps.sample(plan, masks)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        for steps in (self._steps, self.head):
            if steps is not None:
                steps.forget()


class Readback(Protocol):
    """What a queued step will bring."""

    def result(self) -> StepResult:
        """Wait for the device."""


class PendingStep:
    """Implements `executor.PendingResult`."""

    def __init__(self, step: Future[Readback]) -> None:
        self._step = step

    def result(self) -> StepResult:
        try:
            return self._step.result().result()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the device ran out of memory in a step ({error}); lower --mem-fraction-static, --max-prefill-tokens or "
                f"--chunked-prefill-size"
            ) from error


def create_executor(config: EngineConfig, rank: Rank | None = None) -> TorchExecutor:
    """Load the configured model, or the part of it that `rank` has, and size the pool: minutes for a large model. Raises what `load_model`
    raises, `ConfigError` for a device that is not there, `OutOfMemory`."""
    device = resolve_device(config.model.device, rank)
    files = locate_model(config.model.model_path, revision=config.model.revision)
    ranks = None if rank is None else _join(rank, device)
    if ranks is not None and device.type == "cpu":
        torch.set_num_threads(max(torch.get_num_threads() // ranks.size, 1))
    computation = load_computation(config, device, files, ranks)
    capacity, kv_dtype = _plan_pool(config, computation, device, ranks), computation.kv_dtype
    pool = allocate_pool(computation.local, num_pages=capacity.num_pages, page_size=capacity.page_size, dtype=kv_dtype, device=device)
    threads = torch.get_num_threads() if ranks is not None and device.type == "cpu" else None
    mover = None
    if config.memory.enable_hierarchical_cache:
        mover = make_page_mover(config, computation.info, pool, files, str(kv_dtype))
    executor = TorchExecutor(
        computation.bind(pool),
        computation.info,
        capacity,
        device,
        num_threads=threads,
        fast_path=computation.bind_fast(pool),
        ranks=ranks,
        mover=mover,
        choice=_choice(config, device),
        head=None if computation.head is None else computation.head.bind(capacity, _choice(config, device)),
        one_by_one=device.type == "cuda" and config.backend.enable_deterministic_inference,
    )
    if device.type == "cuda":
        from ramet.runtime.kernels.gpu.rehearsal import Rehearsal  # only a GPU has Triton

        is_bounded = config.schedule.max_inter_token_seconds is not None
        warm_up(executor, executor.prepared_sizes, Rehearsal(device), executor.head, pieces=is_bounded)
    return executor


def _choice(config: EngineConfig, device: torch.device) -> TokenChoice[torch.Tensor] | None:
    """With a draft model both draw by races, in which they agree most often."""
    return RaceChoice(TorchChoice(device)) if config.speculative.by_draft else None


def _join(rank: Rank, device: torch.device) -> RankGroup:
    from ramet.runtime.executor.process_group import join_ranks  # one rank starts faster without

    return join_ranks(rank, device)


def _plan_pool(config: EngineConfig, computation: Computation, device: torch.device, ranks: RankGroup | None) -> Capacity:
    """All ranks have as many pages as the one that has room for the fewest."""
    info, local, kv_dtype, head = computation.info, computation.local, computation.kv_dtype, computation.head
    memory = _measure_memory(device, info.weight_bytes)
    if ranks is not None and device.type == "cpu":
        memory = DeviceMemory(memory.total // ranks.size, memory.free // ranks.size)  # which all ranks share
    plan = plan_memory(
        config,
        info,
        memory,
        on_gpu=device.type == "cuda",
        token_bytes=kv_bytes_per_token(local, kv_dtype) + (0 if head is None else head.token_bytes),
        activation_bytes_per_token=computation.activation_bytes,
        slot_bytes=0 if head is None else head.slot_bytes,
    )
    _LOG.info("Model %s: %s on %s", info.name, info.architecture, device)
    log_plan(plan, info, str(kv_dtype).removeprefix("torch."))
    return plan.capacity if ranks is None else replace(plan.capacity, num_pages=ranks.least(plan.capacity.num_pages))


def _measure_memory(device: torch.device, weight_bytes: int) -> DeviceMemory:
    """Look at the device now. Call it after the weights were loaded."""
    if device.type != "cuda":
        return measure_ram(weight_bytes)
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(total, free)


def resolve_device(name: str, rank: Rank | None = None) -> torch.device:
    """`auto`: a CUDA device where there is one. Ranks have one each, in order."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device; use --device cpu, or install a CUDA build of torch", param="device")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if rank is not None and rank.size > torch.cuda.device_count():
        message = f"tp_size={rank.size} needs as many GPUs; this machine has {torch.cuda.device_count()}"
        raise ConfigError(message, param="tp_size")
    device = torch.device("cuda", 0 if rank is None else rank.index)
    torch.cuda.set_device(device)
    return device


@contextmanager
def _without_gradients(context: AbstractContextManager[object]) -> Iterator[None]:
    with torch.inference_mode(), context:
        yield


def _around_halves(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """On a GPU they run on a stream of their own. Whatever the default stream still does (loading) is waited for."""
    if device.type != "cuda":
        return torch.inference_mode
    torch.cuda.synchronize(device)
    context: AbstractContextManager[object] = torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    return lambda: _without_gradients(context)
