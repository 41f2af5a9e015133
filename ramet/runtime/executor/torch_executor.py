"""The executor that computes: one model, one KV pool, one thread that talks to the device.

The thread runs steps in the order of their `launch`. Torch lets other threads run Python while it computes, so that the next step is
planned and grammar masks are filled meanwhile. On a GPU the thread only queues work on its own stream; `result()` waits for
an event behind the copy of the tokens.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch

from ramet.errors import ConfigError, InternalError, OutOfMemory
from ramet.log import get_logger
from ramet.runtime.attention.attention_backend import AttentionBackend, ForwardBatch, KVPool
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import EngineConfig, ModelConfig
from ramet.runtime.executor.executor import PendingResult
from ramet.runtime.executor.kv_pool import allocate_pool, kv_bytes_per_token
from ramet.runtime.executor.memory import log_plan, measure_memory, plan_memory
from ramet.runtime.executor.step_readback import StepReadback
from ramet.runtime.executor.step_runner import Forward, StepRunner
from ramet.runtime.executor.weights import LoadedModel, load_model
from ramet.runtime.model_files import ModelFiles, locate_model
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.hf_config import model_spec
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, StepResult, TokenMasks

_LOG = get_logger(__name__)

_DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}


class TorchExecutor:
    """Implements `executor.Executor`. `num_threads`: torch's threads on CPU; None leaves torch's choice, one per physical core."""

    def __init__(
        self, forward: Forward, model: ModelInfo, capacity: Capacity, device: torch.device, *, num_threads: int | None = None
    ) -> None:
        self._model, self._capacity = model, capacity
        self._device_context = _device_context(device)
        self._runner: StepRunner | None = StepRunner(forward, model, capacity, device)
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
    dtype = resolve_dtype(config.model, files, device)
    loaded = load_model(config.model, device=device, dtype=dtype, files=files)
    kv_dtype = dtype if config.model.kv_cache_dtype == "auto" else _DTYPES[config.model.kv_cache_dtype]
    plan = plan_memory(
        config,
        loaded.info,
        measure_memory(device, loaded.info.weight_bytes),
        on_gpu=device.type == "cuda",
        token_bytes=kv_bytes_per_token(loaded.info, kv_dtype),
        activation_bytes_per_token=activation_bytes(loaded.spec, dtype),
    )
    capacity = plan.capacity
    pool = allocate_pool(loaded.info, num_pages=capacity.num_pages, page_size=capacity.page_size, dtype=kv_dtype, device=device)
    _LOG.info("Model %s: %s in %s on %s", loaded.info.name, loaded.info.architecture, loaded.info.dtype, device)
    log_plan(plan, loaded.info, str(kv_dtype).removeprefix("torch."))
    attention = create_attention(config.backend.attention_backend)
    _LOG.info("Attention backend: %s; sampling backend: pytorch", type(attention).__name__)
    return TorchExecutor(eager_forward(loaded, attention, pool), loaded.info, capacity, device)


def eager_forward(loaded: LoadedModel, attention: AttentionBackend, pool: KVPool) -> Forward:
    """The model, operation by operation: works for every batch and on every device."""

    def forward(batch: ForwardBatch) -> torch.Tensor:
        attention.prepare(batch, pool)
        logits: torch.Tensor = loaded.model(batch, attention)
        return logits

    return forward


def create_attention(name: str) -> AttentionBackend:
    """`auto` is torch: the only backend so far."""
    if name not in ("auto", "torch"):
        raise ConfigError(f"attention_backend={name!r} is not one of auto, torch", param="attention_backend")
    return TorchAttention()


def resolve_device(name: str) -> torch.device:
    """`auto`: a CUDA device where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device; use --device cpu, or install a CUDA build of torch", param="device")
    return torch.device("cuda", 0) if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else torch.device("cpu")


def resolve_dtype(config: ModelConfig, files: ModelFiles, device: torch.device) -> torch.dtype:
    """`auto`: float32 on CPU, where half-precision products are slow; else the checkpoint's type."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.float32
    spec = model_spec(files, overrides=config.json_model_override_args, context_length=config.context_length)
    return _DTYPES[spec.dtype]


def activation_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """What one prompt token needs at the widest point of a layer: residual and normed input, q, k, v and their rotated copies, the
    attention's output, or gate, up and their product; half as much again for what the allocator cannot use."""
    heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    widest = 2 * spec.hidden_size + max(2 * heads + spec.num_heads * spec.head_dim, 3 * spec.intermediate_size)
    return widest * dtype.itemsize * 3 // 2


def _device_context(device: torch.device) -> AbstractContextManager[object]:
    """A stream of its own on a GPU. Whatever the default stream still does (loading) is waited for."""
    if device.type != "cuda":
        return nullcontext()
    torch.cuda.synchronize(device)
    context: AbstractContextManager[object] = torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    return context
