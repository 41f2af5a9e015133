"""A loaded EAGLE-3 head that only lacks its pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ramet.log import get_logger
from ramet.runtime.attention.attention_backend import AttentionBackend, KVPool
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.eagle_runner import GRAPH_SIZES, EagleRunner, PairStep, pages_of_its_own
from ramet.runtime.executor.eagle_weights import load_head
from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.executor.kv_pool import allocate_pool, kv_bytes_per_token
from ramet.runtime.executor.step_runner import FastPath
from ramet.runtime.executor.token_choice import TokenChoice
from ramet.runtime.executor.weights import LoadedModel
from ramet.runtime.model_spec import ModelSpec
from ramet.runtime.models.feature_taps import FeatureTaps
from ramet.runtime.models.model_info import model_info
from ramet.runtime.plan import Capacity

_LOG = get_logger(__name__)

MakeFastPath = Callable[[PairStep, SlotTables], FastPath]


@dataclass(frozen=True, slots=True)
class HeadComputation:
    """What the head keeps of each token, and of each slot besides; what it needs for a prompt token on the way. `bind` makes its pool
    beside one of the model's capacity."""

    token_bytes: int
    slot_bytes: int
    activation_bytes: int
    bind: Callable[[Capacity, TokenChoice[torch.Tensor] | None], EagleRunner]


def load_head_computation(config: EngineConfig, loaded: LoadedModel, *, dtype: torch.dtype, device: torch.device) -> HeadComputation:
    """Load the head, and tap the model for it. Raises what `load_head` raises."""
    head = load_head(config, loaded, dtype=dtype, device=device)
    spec, num_guesses = head.spec, config.speculative.num_guesses
    taps = loaded.model.taps = FeatureTaps(spec.taps, spec.target_size, dtype=dtype, device=device)
    shape = model_info(spec.decoder, name="head", num_parameters=0, weight_bytes=0, dtype=str(dtype).removeprefix("torch."))
    size = sum(parameter.nbytes for parameter in head.parameters())
    _LOG.info("EAGLE-3 head: %.2f GiB, guesses %d tokens a step out of %s", size / 2**30, num_guesses, f"{spec.num_tokens:,}")

    def bind(capacity: Capacity, choice: TokenChoice[torch.Tensor] | None) -> EagleRunner:
        page_size = capacity.page_size
        num_pages = capacity.num_pages + capacity.max_running * pages_of_its_own(num_guesses, page_size)
        pool = allocate_pool(shape, num_pages=num_pages, page_size=page_size, dtype=dtype, device=device)
        for part in (*pool.keys, *pool.values):
            part.zero_()  # a place that nobody computed is nothing, instead of anything
        attention, fast_path = _on_device(config, spec.decoder, pool, device)
        return EagleRunner(head, taps, attention, pool, loaded.info, capacity, choice, num_guesses, fast_path)

    widest = len(spec.taps) * spec.target_size + 4 * spec.decoder.hidden_size
    token_bytes, page_size = kv_bytes_per_token(shape, dtype), config.memory.page_size
    features = (num_guesses + 1) * spec.decoder.hidden_size * dtype.itemsize
    slot_bytes = features + pages_of_its_own(num_guesses, page_size) * page_size * token_bytes
    return HeadComputation(token_bytes, slot_bytes, widest * dtype.itemsize, bind)


def _on_device(config: EngineConfig, spec: ModelSpec, pool: KVPool, device: torch.device) -> tuple[AttentionBackend, MakeFastPath | None]:
    """How the head attends, and how its steps are recorded where they are."""
    if device.type != "cuda":
        return TorchAttention(), None
    from ramet.runtime.attention.triton_backend import TritonAttention  # only a GPU has Triton
    from ramet.runtime.executor.cuda_graphs import StepGraphs

    attention = TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=device)

    def graphs_of(step: PairStep, tables: SlotTables) -> FastPath:
        return StepGraphs(step, attention, pool, tables, spec.vocab_size, GRAPH_SIZES, mixed=False)

    return attention, None if config.backend.disable_cuda_graph else graphs_of
