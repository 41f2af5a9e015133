"""Every "auto" of the engine's options turned into a value, once, from plain numbers; contradictions are refused. No torch."""

from __future__ import annotations

import json
from dataclasses import replace

from ramet.errors import ConfigError
from ramet.runtime.config import EngineConfig, SpeculativeConfig
from ramet.runtime.plan import Capacity, ModelInfo

CHUNK_CPU, IDLE_CHUNK_CPU = 512, 2048
CHUNK_GPU = 8192
"""Prompt tokens that one step takes at most. While it computes them, every running request waits for its next token: about a second on
two CPU cores, about 0.2 s for a model of 8B parameters on a large GPU. While nobody waits, larger ones save a CPU some of the work."""
LEAST_POOL = 256
"""Tokens of KV below which hardly a chat template and its answer find room: a server of less would start, and refuse every request."""


def check(config: EngineConfig) -> None:
    """What is wrong whatever the model is; looked at before anything is loaded. Raises `ConfigError`."""
    model, memory, schedule, parallel = config.model, config.memory, config.schedule, config.parallel
    if model.trust_remote_code:
        raise ConfigError("trust_remote_code: code that comes with a model never runs here", param="trust_remote_code")
    if parallel.tp_size > 1 and model.quantization in ("q4_1", "q8_0"):
        message = f"quantization={model.quantization} runs on one rank; with tp_size={parallel.tp_size} leave it out"
        raise ConfigError(message, param="quantization")
    _check_pool(config)
    if memory.disable_radix_cache and schedule.schedule_policy == "dfs-weight":
        message = "schedule_policy=dfs-weight orders by the prefix cache, which disable_radix_cache turns off; choose fcfs"
        raise ConfigError(message, param="schedule_policy")
    _check_tiers(config)
    if config.backend.result_cache_tokens and not config.backend.enable_deterministic_inference:
        message = "result_cache_tokens: only with enable_deterministic_inference has a request one answer that can be remembered"
        raise ConfigError(message, param="result_cache_tokens")
    if schedule.chunked_prefill_size == 0:
        message = "chunked_prefill_size=0 would never run a prompt; give a number of tokens, or -1 for no limit"
        raise ConfigError(message, param="chunked_prefill_size")
    if schedule.chunked_prefill_size == -1 and schedule.max_inter_token_seconds is not None:
        message = "max_inter_token_seconds is kept by splitting prompts, which chunked_prefill_size=-1 forbids; leave one of them out"
        raise ConfigError(message, param="max_inter_token_seconds")
    _check_overrides(model.json_model_override_args)
    _check_speculation(config.speculative, parallel.tp_size, has_tiers=memory.enable_hierarchical_cache)


def resolve(config: EngineConfig, model: ModelInfo, capacity: Capacity, *, on_gpu: bool) -> EngineConfig:
    """`config` with every auto filled in that concerns the engine's loop, from what was loaded and how much room it found.

    `max_queued_requests` stays None: no limit. `mem_fraction_static` stays as it was: `max_total_tokens` now says the same exactly.
    """
    check(config)
    _check_against(config, model, capacity)
    chunk = config.schedule.chunked_prefill_size
    policy = config.schedule.schedule_policy
    schedule = replace(
        config.schedule,
        max_running_requests=min(config.schedule.max_running_requests or capacity.max_running, capacity.max_running),
        chunked_prefill_size=(CHUNK_GPU if on_gpu else CHUNK_CPU) if chunk is None else chunk,
        idle_chunked_prefill_size=config.schedule.idle_chunked_prefill_size or (IDLE_CHUNK_CPU if chunk is None and not on_gpu else None),
        schedule_policy="fcfs" if config.memory.disable_radix_cache and policy in ("lpm", "program") else policy,  # no prefixes to order by
    )
    memory = replace(config.memory, max_total_tokens=capacity.num_tokens)
    named = replace(config.model, context_length=model.context_len, served_model_name=config.model.served_model_name or model.name)
    return replace(config, schedule=schedule, memory=memory, model=named)


def _check_against(config: EngineConfig, model: ModelInfo, capacity: Capacity) -> None:
    wanted = config.model.context_length
    if wanted is not None and wanted > model.context_len:
        raise ConfigError(
            f"context_length={wanted} is more than the {model.context_len} tokens of {model.name}; lower it", param="context_length"
        )
    if capacity.page_size != config.memory.page_size:
        raise ConfigError(
            f"the executor made pages of {capacity.page_size} tokens where page_size={config.memory.page_size} was asked", param="page_size"
        )


def _check_pool(config: EngineConfig) -> None:
    wanted, page_size, context = config.memory.max_total_tokens, config.memory.page_size, config.model.context_length
    least = max(min(LEAST_POOL, context or LEAST_POOL), page_size)
    if wanted is not None and wanted < least:
        message = f"max_total_tokens={wanted}: a KV cache that small holds no request; the least is {least}, or leave it out"
        raise ConfigError(message, param="max_total_tokens")


def _check_tiers(config: EngineConfig) -> None:
    memory = config.memory
    if memory.hicache_storage_backend is not None and not memory.enable_hierarchical_cache:
        message = "hicache_storage_backend is a part of the hierarchical cache: add enable_hierarchical_cache"
        raise ConfigError(message, param="hicache_storage_backend")
    if memory.hicache_storage_backend is not None and config.parallel.tp_size > 1:
        message = "hicache_storage_backend keeps the KV of one rank; with tp_size > 1 leave it out, and evicted KV stays in host memory"
        raise ConfigError(message, param="hicache_storage_backend")
    if memory.enable_hierarchical_cache and memory.disable_radix_cache:
        message = "enable_hierarchical_cache extends the prefix cache, which disable_radix_cache turns off; leave one of them out"
        raise ConfigError(message, param="enable_hierarchical_cache")


def _check_speculation(options: SpeculativeConfig, num_ranks: int, *, has_tiers: bool) -> None:
    algorithm, by_draft, path = options.speculative_algorithm, options.by_draft, options.speculative_draft_model_path
    if by_draft and path is None:
        what = "a small model of the same tokenizer" if algorithm == "STANDALONE" else "a head that was trained for the model"
        message = f"speculative_algorithm={algorithm} needs --speculative-draft-model-path, {what}"
        raise ConfigError(message, param="speculative_algorithm")
    if path is not None and not by_draft:
        message = "speculative_draft_model_path is used with --speculative-algorithm STANDALONE or EAGLE3; add one, or leave the path out"
        raise ConfigError(message, param="speculative_draft_model_path")
    if algorithm == "EAGLE3" and options.speculative_draft_model_quantization is not None:
        message = "speculative_draft_model_quantization: an EAGLE-3 head is computed with as numbers; leave it out"
        raise ConfigError(message, param="speculative_draft_model_quantization")
    if algorithm == "EAGLE3" and has_tiers:
        message = "speculative_algorithm=EAGLE3: what comes back from host memory has nothing of the head's; leave that cache out"
        raise ConfigError(message, param="speculative_algorithm")
    steps, tokens = options.speculative_num_steps, options.speculative_num_draft_tokens
    if by_draft and tokens is not None and (tokens < 2 or (steps is not None and tokens != steps + 1)):
        message = f"speculative_num_draft_tokens={tokens} must be one more than the guesses of a step (speculative_num_steps); leave it out"
        raise ConfigError(message, param="speculative_num_draft_tokens")
    if by_draft and num_ranks > 1:
        raise ConfigError(f"a draft runs beside one rank, not {num_ranks}; use NGRAM, or one rank", param="speculative_algorithm")


def _check_overrides(text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"json_model_override_args is not JSON: {error}", param="json_model_override_args") from error
    if not isinstance(value, dict):
        raise ConfigError(
            "json_model_override_args must be a JSON object such as '{\"rope_theta\": 10000}'", param="json_model_override_args"
        )
