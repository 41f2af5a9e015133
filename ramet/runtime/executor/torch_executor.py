"""The executor that computes: one model, one KV pool, one thread that talks to the device.

The thread runs steps in the order of their `launch`. Torch lets other threads run Python while it computes, so that the next step is
planned and grammar masks are filled meanwhile. On a GPU the thread only queues work on its own stream; `result()` waits for
an event behind the copy of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch

from ramet.errors import ConfigError, InternalError, OutOfMemory
from ramet.log import get_logger
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.computation import load_computation
from ramet.runtime.executor.executor import PendingResult
from ramet.runtime.executor.gpu_warm_up import warm_up
from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.executor.kv_pool import allocate_pool, kv_bytes_per_token
from ramet.runtime.executor.memory import log_plan, measure_memory, plan_memory
from ramet.runtime.executor.step_readback import StepReadback
from ramet.runtime.executor.step_runner import FastPath, Forward, StepRunner
from ramet.runtime.model_files import locate_model
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, StepResult, TokenMasks

_LOG = get_logger(__name__)


class TorchExecutor:
    """Implements `executor.Executor`. `num_threads`: torch's threads on CPU; None leaves torch's choice, one per physical core."""

    def __init__(
        self,
        forward: Forward,
        model: ModelInfo,
        capacity: Capacity,
        device: torch.device,
        *,
        num_threads: int | None = None,
        fast_path: Callable[[SlotTables], FastPath] | None = None,
    ) -> None:
        self._model, self._capacity = model, capacity
        self._runner: StepRunner | None = StepRunner(forward, model, capacity, device, fast_path)
        self._device_context = _device_context(device)
        self.on_gpu = device.type == "cuda"
        self._forward: Future[None] | None = None
        initializer = None if num_threads is None else (lambda: torch.set_num_threads(num_threads))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ramet-device", initializer=initializer)

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def launch(self, plan: BatchPlan) -> None:
        self._forward = self._thread.submit(self._run_forward, plan)

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        forward, self._forward = self._forward, None
        if forward is None:
            raise InternalError("sample() without launch(): every step needs both, in this order")
        return PendingStep(self._thread.submit(self._run_sample, plan, masks, forward))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._runner = None

    def _run_forward(self, plan: BatchPlan) -> None:
        assert self._runner is not None
        with torch.inference_mode(), self._device_context:
            self._runner.forward(plan)

    def _run_sample(self, plan: BatchPlan, masks: TokenMasks | None, forward: Future[None]) -> StepReadback:
        forward.result()  # has run: this thread took it first. Raises what it raised
        assert self._runner is not None
        with torch.inference_mode(), self._device_context:
            return self._runner.sample(plan, masks)


class PendingStep:
    """Implements `executor.PendingResult`."""

    def __init__(self, step: Future[StepReadback]) -> None:
        self._step = step

    def result(self) -> StepResult:
        try:
            return self._step.result().result()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the device ran out of memory in a step ({error}); lower --mem-fraction-static, --max-prefill-tokens or "
                f"--chunked-prefill-size"
            ) from error


def create_executor(config: EngineConfig) -> TorchExecutor:
    """Load the configured model and size the pool: minutes for a large model. Raises what `load_model` raises, `ConfigError` for a
    device that is not there, `OutOfMemory`."""
    device = resolve_device(config.model.device)
    files = locate_model(config.model.model_path, revision=config.model.revision)
    computation = load_computation(config, device, files)
    info, kv_dtype = computation.info, computation.kv_dtype
    plan = plan_memory(
        config,
        info,
        measure_memory(device, info.weight_bytes),
        on_gpu=device.type == "cuda",
        token_bytes=kv_bytes_per_token(info, kv_dtype),
        activation_bytes_per_token=computation.activation_bytes,
    )
    capacity = plan.capacity
    pool = allocate_pool(info, num_pages=capacity.num_pages, page_size=capacity.page_size, dtype=kv_dtype, device=device)
    _LOG.info("Model %s: %s on %s", info.name, info.architecture, device)
    log_plan(plan, info, str(kv_dtype).removeprefix("torch."))
    executor = TorchExecutor(computation.bind(pool), info, capacity, device, fast_path=computation.bind_fast(pool))
    if device.type == "cuda":
        warm_up(executor)
    return executor


def resolve_device(name: str) -> torch.device:
    """`auto`: a CUDA device where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device; use --device cpu, or install a CUDA build of torch", param="device")
    return torch.device("cuda", 0) if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else torch.device("cpu")


def _device_context(device: torch.device) -> AbstractContextManager[object]:
    """A stream of its own on a GPU. Whatever the default stream still does (loading) is waited for."""
    if device.type != "cuda":
        return nullcontext()
    torch.cuda.synchronize(device)
    context: AbstractContextManager[object] = torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    return context
