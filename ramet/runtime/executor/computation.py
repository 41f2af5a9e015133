"""A loaded model that only lacks its KV pool: operation by operation, or on a GPU by our kernels and graphs. Which is decided here, once,
and said in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ramet.errors import ConfigError, Unsupported
from ramet.log import get_logger
from ramet.runtime.attention.attention_backend import AttentionBackend, ForwardBatch, KVPool
from ramet.runtime.attention.flashinfer_prefill import FlashInferPrefill, PrefillShape, covers, is_compiled
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import EngineConfig, ModelConfig
from ramet.runtime.executor.checkpoint_fit import check_attention_backend
from ramet.runtime.executor.eagle_computation import HeadComputation, load_head_computation
from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.executor.step_runner import FastPath, Forward
from ramet.runtime.executor.weights import LoadedModel, load_model
from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.hf_config import model_spec
from ramet.runtime.plan import ModelInfo

_LOG = get_logger(__name__)

DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
CPU_ONLY = ("q4_1", "q8_0")


@dataclass(frozen=True, slots=True)
class Computation:
    """`info` describes the whole model, `local` the part that this rank keeps keys and values of.
    `bind` makes the forward pass over a pool, `bind_fast` the faster way through decode steps, where there is one.
    `activation_bytes`: of one prompt token at the widest point of a layer. `head`: what guesses beside the
    model, where something does."""

    info: ModelInfo
    local: ModelInfo
    kv_dtype: torch.dtype
    activation_bytes: int
    bind: Callable[[KVPool], Forward]
    bind_fast: Callable[[KVPool], Callable[[SlotTables], FastPath] | None] = lambda pool: None
    head: HeadComputation | None = None


def load_computation(config: EngineConfig, device: torch.device, files: ModelFiles, ranks: RankGroup | None = None) -> Computation:
    """Load the weights, or this rank's part of them. Raises what `load_model` raises, and `Unsupported` for a quantization that cannot be
    had."""
    options = config.model
    check_attention_backend(config.backend, device.type)
    if device.type == "cpu" and ranks is not None:
        _check_ranks(options)
    if config.backend.enable_deterministic_inference:
        _check_deterministic(config, device, ranks)
    if options.quantization in CPU_ONLY and device.type != "cpu":
        raise Unsupported(f"quantization={options.quantization} runs on CPUs; on {device.type} use fp8, int8 or int4", param="quantization")
    dtype = resolve_dtype(options, files, device)
    loaded = load_model(options, device=device, dtype=dtype, files=files, ranks=ranks)
    if ranks is not None:
        _log_shard(loaded, ranks)
    kv_dtype = dtype if options.kv_cache_dtype == "auto" else DTYPES[options.kv_cache_dtype]
    computation = _computation(config, loaded, kv_dtype, dtype, device)
    if config.speculative.speculative_algorithm != "EAGLE3":
        return computation
    head = load_head_computation(config, loaded, dtype=dtype, device=device)
    return replace(computation, head=head, activation_bytes=computation.activation_bytes + head.activation_bytes)


def _computation(config: EngineConfig, loaded: LoadedModel, kv_dtype: torch.dtype, dtype: torch.dtype, device: torch.device) -> Computation:
    if config.backend.attention_backend in ("triton", "flashinfer") or (
        config.backend.attention_backend == "auto" and device.type == "cuda"
    ):
        return _on_gpu(config, loaded, kv_dtype, dtype, device)
    attention = TorchAttention()
    _LOG.info("Attention backend: torch; sampling backend: pytorch")
    local = _local(loaded)
    return Computation(
        loaded.info, local, kv_dtype, activation_bytes(loaded.model.shard.local, dtype), lambda pool: eager_forward(loaded, attention, pool)
    )


def _check_deterministic(config: EngineConfig, device: torch.device, ranks: RankGroup | None) -> None:
    """Raises `Unsupported` where other kernels than those that keep an order would run."""
    reason = None
    if device.type == "cpu":
        reason = "on a CPU it holds for the quantised step only: a GGUF model, or --quantization q8_0"
    elif ranks is not None:
        reason = "sums over several GPUs are not always added up in one order; leave out tp_size"
    elif config.backend.attention_backend not in ("auto", "triton"):
        reason = f"attention_backend={config.backend.attention_backend} cuts its sums by the batch; leave it out"
    if reason is not None:
        raise Unsupported(f"enable_deterministic_inference: {reason}", param="enable_deterministic_inference")


def _on_gpu(config: EngineConfig, loaded: LoadedModel, kv_dtype: torch.dtype, dtype: torch.dtype, device: torch.device) -> Computation:
    """Our kernels, and graphs of the decode step unless they are turned off. Imported here, since only a GPU has Triton."""
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.executor.cuda_graphs import StepGraphs
    from ramet.runtime.executor.graph_sizes import MOST_ROWS, choose_sizes
    from ramet.runtime.models.fused_step import FusedStep

    spec, graphs = loaded.model.shard.local, not config.backend.disable_cuda_graph
    in_order = config.backend.enable_deterministic_inference
    sees_all = _sees_all(spec, dtype, kv_dtype) and not in_order
    prefill = _flashinfer(config.backend.attention_backend, spec, dtype, sees_all, device)
    attention = TritonAttention(
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        device=device,
        dense_prompts=sees_all and spec.head_dim in (64, 128),
        prefill=prefill,
        in_order=in_order,
    )
    step = FusedStep(loaded.model, attention, in_order=in_order)
    name = "triton, one order of sums" if in_order else "triton" if prefill is None else "triton, flashinfer for prompts"
    _LOG.info("Attention backend: %s; sampling backend: pytorch; CUDA graphs: %s", name, "on" if graphs else "off")

    def bind(pool: KVPool) -> Forward:
        def forward(batch: ForwardBatch) -> torch.Tensor:
            attention.prepare(batch, pool)
            return step.forward(batch)

        return forward

    def bind_fast(pool: KVPool) -> Callable[[SlotTables], FastPath] | None:
        def graphs_of(tables: SlotTables) -> FastPath:
            sizes = choose_sizes(step, min(config.backend.cuda_graph_max_bs or MOST_ROWS, len(tables.pages)), loaded.model.ranks)
            return StepGraphs(step, attention, pool, tables, spec.vocab_size, sizes)

        return graphs_of if graphs else None

    return Computation(loaded.info, _local(loaded), kv_dtype, activation_bytes(spec, dtype), bind, bind_fast)


def _log_shard(loaded: LoadedModel, ranks: RankGroup) -> None:
    shard, here = loaded.model.shard, sum(parameter.nbytes for parameter in loaded.model.parameters())
    _LOG.info(
        "Tensor parallelism: rank %d of %d holds %d of %d query heads, %d of %d key/value heads and %.2f of %.2f GiB of weights",
        *(ranks.rank, ranks.size, len(shard.heads), shard.spec.num_heads, len(shard.kv_heads), shard.spec.num_kv_heads),
        *(here / 2**30, loaded.info.weight_bytes / 2**30),
    )


def _local(loaded: LoadedModel) -> ModelInfo:
    return replace(loaded.info, num_kv_heads=len(loaded.model.shard.kv_heads))


def _sees_all(spec: ModelSpec, dtype: torch.dtype, kv_dtype: torch.dtype) -> bool:
    """Whether attention is the plain one in half precision: in every layer a token sees all that is before it."""
    is_open = all(layer.window is None or layer.window >= spec.context_len for layer in spec.layers)
    return is_open and dtype == kv_dtype and dtype in (torch.bfloat16, torch.float16) and spec.attention_softcap is None


def _flashinfer(wanted: str, spec: ModelSpec, dtype: torch.dtype, sees_all: bool, device: torch.device) -> FlashInferPrefill | None:
    """FlashInfer for prompts where it was asked for, or is at hand compiled already."""
    shape = PrefillShape(spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.attention_scale, dtype)
    fits = wanted != "triton" and sees_all and covers(shape, device)
    if wanted == "flashinfer" and not fits:
        raise ConfigError(
            "attention_backend=flashinfer needs the package flashinfer-python, a Hopper GPU, and a half-precision model without sliding "
            "windows or softcaps; use triton",
            param="attention_backend",
        )
    return FlashInferPrefill(shape, device) if fits and (wanted == "flashinfer" or is_compiled(shape)) else None


def _check_ranks(options: ModelConfig) -> None:
    if options.quantization in (*CPU_ONLY, "int4", "int8"):
        raise Unsupported(f"quantization={options.quantization} runs on one rank of a CPU; leave it out, or leave out tp_size")
    _LOG.info("Tensor parallelism on CPU computes in float32, operation by operation")


def eager_forward(loaded: LoadedModel, attention: AttentionBackend, pool: KVPool) -> Forward:
    """The model, operation by operation: works for every batch and on every device."""

    def forward(batch: ForwardBatch) -> torch.Tensor:
        attention.prepare(batch, pool)
        logits: torch.Tensor = loaded.model(batch, attention)
        return logits

    return forward


def resolve_dtype(config: ModelConfig, files: ModelFiles, device: torch.device) -> torch.dtype:
    """`auto`: float32 on CPU, where half-precision products are slow; else the checkpoint's type."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.float32
    spec = model_spec(files, overrides=config.json_model_override_args, context_length=config.context_length)
    return DTYPES[spec.dtype]


def activation_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """What one prompt token needs at the widest point of a layer: residual and normed input, q, k, v and their rotated copies, the
    attention's output, or gate, up and their product, or that of each of a token's experts with its output and the shared one's three; half
    as much again for what the allocator cannot use."""
    heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    inner = 3 * spec.intermediate_size
    if (experts := spec.experts) is not None:
        chosen = experts.per_token * (spec.hidden_size + experts.intermediate_size)
        inner = max(inner, chosen + 3 * experts.shared_size)
    widest = 2 * spec.hidden_size + max(2 * heads + spec.num_heads * spec.head_dim, inner)
    return widest * dtype.itemsize * 3 // 2
