"""The executor of the CPU's own step: weights in 4 and 8 bits, one C++ call a step. No torch; `--quantization none` is the exact one, in
torch.

One thread runs steps in the order of their `launch`. The kernels let other threads run Python while they compute, so that the next step is
planned and grammar masks are filled meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ramet.errors import ConfigError, OutOfMemory, Unsupported
from ramet.log import get_logger
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.checkpoint_fit import check_attention_backend, check_load_format, check_quantization
from ramet.runtime.executor.cpu_choice import CpuChoice
from ramet.runtime.executor.cpu_runner import Array, CpuRunner
from ramet.runtime.executor.executor import PendingResult
from ramet.runtime.executor.memory import log_plan, measure_ram, plan_memory
from ramet.runtime.executor.quantized_weights import QuantizedModel, load_quantized, why_not
from ramet.runtime.executor.queued_steps import QueuedSteps
from ramet.runtime.executor.token_choice import TokenChoice
from ramet.runtime.host_memory import HostMemory
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.core_count import usable_cores
from ramet.runtime.kernels.cpu_kv_pool import KV_TYPES, KvType, allocate_cpu_pool
from ramet.runtime.model_files import ModelFiles, locate_model
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.hf_config import model_spec
from ramet.runtime.models.model_info import model_info
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, StepResult, TokenMasks

_LOG = get_logger(__name__)
BITS = {"q4_1": 4, "int4": 4, "q8_0": 8, "int8": 8, None: None, "awq": None, "gptq": None, "compressed-tensors": None}
"""--quantization → bits of every matrix; None: the file's own."""


class CpuExecutor:
    """Implements `executor.Executor`. `prepare` runs in the step's thread before all else."""

    on_gpu = False

    def __init__(
        self,
        runner: CpuRunner,
        model: ModelInfo,
        capacity: Capacity,
        *,
        host_memory: HostMemory | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._model, self._capacity, self.host_memory = model, capacity, host_memory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ramet-step", initializer=prepare)
        self._steps = QueuedSteps(runner, self._thread, PendingCpuStep)

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
        self._steps.forget()


class PendingCpuStep:
    """Implements `executor.PendingResult`."""

    def __init__(self, step: Future[StepResult]) -> None:
        self._step = step

    def result(self) -> StepResult:
        try:
            return self._step.result()
        except MemoryError as error:
            raise OutOfMemory(f"no memory for a step ({error}); lower --chunked-prefill-size or --max-total-tokens") from error


def create_cpu_executor(config: EngineConfig) -> CpuExecutor | None:
    """The C++ step where it was asked for by name; or, left alone, for a model in few bits that it holds exactly, on a machine where it can
    be built. None: torch computes. Raises what `load_quantized` raises, `ConfigError`, `OutOfMemory`."""
    options = config.model
    check_for_cpu(config)
    if options.quantization in ("none", "fp8") or options.load_format == "dummy":
        return None
    files = locate_model(options.model_path, revision=options.revision)
    spec = model_spec(files, overrides=options.json_model_override_args, context_length=options.context_length)
    check_load_format(options, files)
    check_quantization(options, spec)
    if config.speculative.speculative_algorithm == "EAGLE3":
        _check_head(options.quantization)
        return None
    if BITS[options.quantization] is not None:
        return _create(config, files, spec)
    integers = spec.checkpoint is not None and spec.checkpoint.layout != "fp8"
    if not (files.format == "gguf" or integers) or options.dtype != "auto":
        return None
    try:
        if reason := why_not(spec):
            raise Unsupported(reason)
        cpu_library.load()
        return _create(config, files, spec)
    except Unsupported as error:
        if error.param is not None:
            raise
        _LOG.info("The weights are dequantised to float32: %s", error.message)
        return None


def _check_head(quantization: str | None) -> None:
    """An EAGLE-3 head reads the streams between the layers, which the C++ step keeps to itself: that must not be asked for by name."""
    if BITS[quantization] is not None:
        message = f"speculative_algorithm=EAGLE3 does not go with quantization={quantization} on a CPU; take none, or NGRAM or STANDALONE"
        raise ConfigError(message, param="speculative_algorithm")
    _LOG.info("The weights are dequantised to float32, which an EAGLE-3 head guesses from")


def check_for_cpu(config: EngineConfig) -> None:
    """Refuse what a CPU would leave unheard."""
    options = config.model
    check_attention_backend(config.backend, "cpu")
    if options.load_format == "dummy" and options.quantization not in (None, "none"):
        message = f"quantization={options.quantization}: on a CPU dummy weights stay numbers; leave it out, or load a checkpoint"
        raise ConfigError(message, param="quantization")
    if BITS.get(options.quantization) is not None and options.dtype not in ("auto", "float32", "float"):
        message = f"dtype={options.dtype}: the quantised CPU kernels compute in float32; leave it out, or take --quantization none"
        raise ConfigError(message, param="dtype")


def _create(config: EngineConfig, files: ModelFiles, spec: ModelSpec) -> CpuExecutor:
    kv_type, threads = _kv_type(config.model.kv_cache_dtype), usable_cores()
    deterministic, bits = config.backend.enable_deterministic_inference, BITS[config.model.quantization]
    loaded = load_quantized(files, spec, bits=bits, threads=threads, kv_type=kv_type, deterministic=deterministic)
    info = _info(config, files, spec, loaded, kv_type)
    _LOG.info("Quantised CPU kernels on %d of %d cores; --quantization none computes in float32", threads, os.cpu_count() or threads)
    capacity = _plan_pool(config, info, kv_type)
    pool = allocate_cpu_pool(info.num_layers, (capacity.num_tokens, info.num_kv_heads, info.head_dim), capacity.page_size, kv_type)
    choice: TokenChoice[Array] = CpuChoice(loaded.step.context)
    races, tiers = config.speculative.by_draft, config.memory.enable_hierarchical_cache
    if not (races or tiers):
        return CpuExecutor(CpuRunner(loaded.step, pool, info, capacity, choice), info, capacity)
    from ramet.runtime.executor import torch_beside_cpu  # torch, which the rest does without

    choice = torch_beside_cpu.Races(choice) if races else choice
    mover = torch_beside_cpu.page_mover(config, info, pool, files) if tiers else None
    runner = CpuRunner(loaded.step, pool, info, capacity, choice, None if mover is None else mover.run)
    return CpuExecutor(runner, info, capacity, host_memory=mover, prepare=torch_beside_cpu.one_thread)


def _kv_type(wanted: str) -> KvType:
    kv_type = KV_TYPES.get({"auto": "float16", "bf16": "bfloat16"}.get(wanted, wanted))
    if kv_type is None:
        message = "the quantised CPU kernels keep keys and values in 16 or 32 bits; use --kv-cache-dtype float16, or --quantization none"
        raise Unsupported(message, param="kv_cache_dtype")
    return kv_type


def _info(config: EngineConfig, files: ModelFiles, spec: ModelSpec, loaded: QuantizedModel, kv_type: KvType) -> ModelInfo:
    return model_info(
        spec,
        name=config.model.served_model_name or files.name,
        num_parameters=loaded.num_parameters,
        weight_bytes=loaded.num_bytes,
        dtype="float32",
        kv_dtype=kv_type.name,
    )


def _plan_pool(config: EngineConfig, info: ModelInfo, kv_type: KvType) -> Capacity:
    token_bytes = info.kv_bytes_per_token
    plan = plan_memory(config, info, measure_ram(info.weight_bytes), on_gpu=False, token_bytes=token_bytes, activation_bytes_per_token=0)
    _LOG.info("Model %s: %s on cpu", info.name, info.architecture)
    log_plan(plan, info, kv_type.name)
    return plan.capacity
