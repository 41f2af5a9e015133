"""A worker from its description: the model loaded, the scheduler in front of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ramet.grammar.compiler import create_mask_filler
from ramet.grammar.late_compiler import LateCompiler
from ramet.grammar.matcher import GrammarCompiler, Vocabulary
from ramet.runtime.cache.disk_blocks import DiskBlocks
from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.no_cache import NoCache
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.cache.second_tier import SecondTier
from ramet.runtime.config import EngineConfig, MemoryConfig
from ramet.runtime.engine.channel import Channel
from ramet.runtime.engine.draft_model import DraftModel
from ramet.runtime.engine.eagle_guesser import EagleGuesser
from ramet.runtime.engine.follower import Follower
from ramet.runtime.engine.followers import Followers, ParallelExecutor, end_with_them
from ramet.runtime.engine.generation_engine import Tokenizer
from ramet.runtime.engine.processes import ProcessWorker
from ramet.runtime.engine.worker import Worker
from ramet.runtime.engine.worker_parts import TextParts, WorkerSpec, resolved
from ramet.runtime.executor.executor import Executor
from ramet.runtime.host_memory import HostMemory
from ramet.runtime.plan import ModelInfo
from ramet.runtime.resolve import resolve
from ramet.runtime.scheduler.guess_policy import GuessPolicy
from ramet.runtime.scheduler.guessing import Guesser
from ramet.runtime.scheduler.scheduler import Scheduler
from ramet.user_cache import user_cache

DRAFT_TOKENS = 1 << 16
"""Of the draft model's KV pool."""
DRAFT_CHUNK = 512


def build_worker(spec: WorkerSpec, channel: Channel, end: Callable[[], None] | None = None) -> Worker | Follower:
    """Load the model and put the scheduler in front of it. Takes seconds to minutes. `end` ends this process at once."""
    if spec.rank is not None:
        return Follower(channel, resolved(spec.executor)(spec.config, spec.rank), end or (lambda: None))
    draft = _load_draft(spec)  # first: the model's KV pool takes all memory that is left
    executor = _load(spec, channel, end)
    # What only a real device knows; an executor that does not say is on the CPU and has no graphs.
    on_gpu: bool = getattr(executor, "on_gpu", False)
    config = resolve(spec.config, executor.model, executor.capacity, on_gpu=on_gpu)
    return Worker(
        channel,
        _scheduler(config, executor, _grammar_compiler(config, spec.load_text, executor.model), draft),
        executor,
        overlap=not config.schedule.disable_overlap_schedule,
        log_interval=config.log.decode_log_interval,
        cuda_graph=on_gpu and not config.backend.disable_cuda_graph,
    )


def _load(spec: WorkerSpec, channel: Channel, end: Callable[[], None] | None) -> Executor:
    """The executor, and behind it those of the other ranks."""
    make: Callable[..., Executor] = resolved(spec.executor)
    size = spec.config.parallel.tp_size
    if size == 1:
        return make(spec.config)
    followers = Followers(size, lambda rank: ProcessWorker(replace(spec, rank=rank)), partial(end_with_them, channel, end))
    try:
        return ParallelExecutor(make(spec.config, followers.rank), followers)
    except BaseException:
        followers.close(patience=0.0)
        raise


def _load_draft(spec: WorkerSpec) -> Executor | None:
    """The executor of the model that guesses, if there is one. Its KV pool has a fixed size: what finds no room there is not guessed."""
    options, config = spec.config.speculative, spec.config
    if options.speculative_algorithm != "STANDALONE":
        return None
    model = replace(
        config.model,
        model_path=options.speculative_draft_model_path,
        quantization=options.speculative_draft_model_quantization,
        served_model_name=None,
        context_length=None,
        json_model_override_args="{}",
    )
    most = min(config.memory.max_total_tokens or DRAFT_TOKENS, DRAFT_TOKENS)
    memory = MemoryConfig(max_total_tokens=most, page_size=config.memory.page_size)
    make: Callable[..., Executor] = resolved(spec.executor)
    return make(replace(config, model=model, memory=memory))


def _grammar_compiler(config: EngineConfig, load: Callable[[], TextParts], model: ModelInfo) -> GrammarCompiler | None:
    """Made while the first requests run: it needs the tokenizer, and nothing else of the worker does."""
    return None if config.backend.grammar_backend == "none" else LateCompiler(lambda: _make_compiler(config, load().tokenizer, model))


def _make_compiler(config: EngineConfig, tokenizer: Tokenizer, model: ModelInfo) -> GrammarCompiler:
    from ramet.grammar.compiler import create_grammar_compiler

    eos = tuple(dict.fromkeys([*model.eos_token_ids, *tokenizer.eos_token_ids]))
    encode = getattr(tokenizer, "encode_continuation", partial(tokenizer.encode, add_special_tokens=False))
    return create_grammar_compiler(
        config.backend.grammar_backend,
        Vocabulary(tokenizer.token_bytes(), tokenizer.special_ids, eos, model.vocab_size),
        encode,
        json_whitespace=config.backend.constrained_json_whitespace_pattern or "",
        bounded=not config.backend.disable_grammar_closing,
        isolated=True,
    )


def _scheduler(config: EngineConfig, executor: Executor, compiler: GrammarCompiler | None, draft: Executor | None = None) -> Scheduler:
    capacity, model = executor.capacity, executor.model
    cache: Cache
    if config.memory.disable_radix_cache:
        cache = NoCache(capacity.num_pages, capacity.page_size)
    else:
        tier = _second_tier(config.memory, executor)
        cache = PrefixCache(capacity.num_pages, capacity.page_size, config.memory.radix_eviction_policy, tier)
    return Scheduler(
        capacity,
        model.context_len,
        model.vocab_size,
        config.schedule,
        cache,
        compiler,
        seed=config.model.random_seed,
        num_guesses=config.speculative.num_guesses,
        memory=config.memory,
        mask_filler=create_mask_filler(config.backend.grammar_backend, config.backend.grammar_mask_threads),
        guesser=_guesser(config, executor, draft),
        guess_policy=GuessPolicy(always=config.speculative.speculative_always),
    )


def _guesser(config: EngineConfig, executor: Executor, draft: Executor | None) -> Guesser | None:
    """None: there is none, or one that looks back on what was said."""
    vocab_size, head = executor.model.vocab_size, getattr(executor, "head", None)
    if draft is not None:
        return DraftModel(draft, vocab_size, chunk=max(config.schedule.chunked_prefill_size or 0, DRAFT_CHUNK))
    return None if head is None else EagleGuesser(head, vocab_size)


def _second_tier(options: MemoryConfig, executor: Executor) -> SecondTier | None:
    """Where the executor has made memory for it."""
    memory: HostMemory | None = getattr(executor, "host_memory", None)
    if memory is None:
        return None
    disk = None
    if options.hicache_storage_backend == "file":
        directory = options.hicache_storage_dir or user_cache("kv")
        disk = DiskBlocks(Path(directory).expanduser(), memory.fingerprint, options.hicache_storage_size * 10**9)
    policy = options.hicache_write_policy
    saves_early = policy == "write_through" or (policy == "auto" and disk is not None)
    return SecondTier(memory, executor.capacity.page_size, time.monotonic, disk, saves_early=saves_early)
