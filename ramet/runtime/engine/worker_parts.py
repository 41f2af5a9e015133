"""What a worker is made of, by name, so that the same description starts it on a thread or in another process."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ramet.grammar.late_compiler import LateCompiler
from ramet.grammar.matcher import GrammarCompiler, Vocabulary
from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.no_cache import NoCache
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.config import EngineConfig, SpeculativeConfig
from ramet.runtime.engine.channel import Channel
from ramet.runtime.engine.follower import Follower
from ramet.runtime.engine.generation_engine import ChatTemplate, Tokenizer
from ramet.runtime.engine.worker import Worker
from ramet.runtime.executor.executor import Executor, Rank
from ramet.runtime.plan import ModelInfo
from ramet.runtime.resolve import resolve
from ramet.runtime.scheduler.scheduler import Scheduler

ExecutorFactory = Callable[..., Executor]
TORCH_EXECUTOR = "ramet.runtime.executor.torch_executor:create_executor"
MODEL_TEXT = "ramet.runtime.engine.worker_parts:load_text"


@dataclass(frozen=True, slots=True)
class TextParts:
    """All of a model that has to do with text; small, and loaded by front and worker alike."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    generation_defaults: Mapping[str, Any]

    def token_bytes(self) -> tuple[bytes, ...]:
        return self.tokenizer.token_bytes()

    def token_bytes_with_special(self) -> tuple[bytes, ...]:
        """As `token_bytes`, with special tokens written out."""
        table = list(self.tokenizer.token_bytes())
        for token_id in self.tokenizer.special_ids:
            table[token_id] = self.tokenizer.decode([token_id], skip_special_tokens=False).encode()
        return tuple(table)


TextFactory = Callable[[EngineConfig], TextParts]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """`executor` and `text` are factories, or where to find them ("module:function"). Only the latter can go to another process. With a
    `rank` it describes a process that follows tensor-parallel rank 0; where there are ranks, an executor's factory is given one too."""

    config: EngineConfig
    executor: str | ExecutorFactory = TORCH_EXECUTOR
    text: str | TextFactory = MODEL_TEXT
    rank: Rank | None = None

    def to_json(self) -> str:
        if not isinstance(self.executor, str) or not isinstance(self.text, str):
            raise TypeError("a worker process finds its factories by name; give 'module:function'")
        rank = None if self.rank is None else asdict(self.rank)
        return json.dumps({"config": flat_options(self.config), "executor": self.executor, "text": self.text, "rank": rank})

    @classmethod
    def from_json(cls, line: str | bytes) -> WorkerSpec:
        fields = json.loads(line)
        rank = None if fields["rank"] is None else Rank(**fields["rank"])
        return cls(EngineConfig.from_options(fields["config"]), fields["executor"], fields["text"], rank)

    def load_text(self) -> TextParts:
        text: TextParts = _resolved(self.text)(self.config)
        return text

    def build(self, channel: Channel, end: Callable[[], None] | None = None) -> Worker | Follower:
        """Load the model and put the scheduler in front of it. Takes seconds to minutes. `end` ends this process at once."""
        if self.rank is not None:
            return Follower(channel, _resolved(self.executor)(self.config, self.rank), end or (lambda: None))
        executor = self._load(channel, end)
        # What only a real device knows; an executor that does not say is on the CPU and has no graphs.
        on_gpu: bool = getattr(executor, "on_gpu", False)
        config = resolve(self.config, executor.model, executor.capacity, on_gpu=on_gpu)
        return Worker(
            channel,
            _scheduler(config, executor, _grammar_compiler(config, self.load_text, executor.model)),
            executor,
            overlap=not config.schedule.disable_overlap_schedule,
            log_interval=config.log.decode_log_interval,
            cuda_graph=on_gpu and not config.backend.disable_cuda_graph,
        )

    def _load(self, channel: Channel, end: Callable[[], None] | None) -> Executor:
        """The executor, and behind it those of the other ranks."""
        make: Callable[..., Executor] = _resolved(self.executor)
        size = self.config.parallel.tp_size
        if size == 1:
            return make(self.config)
        # Imported here: they start workers, which are described by this module.
        from ramet.runtime.engine.followers import Followers, ParallelExecutor, end_with_them
        from ramet.runtime.engine.processes import ProcessWorker

        followers = Followers(size, lambda rank: ProcessWorker(replace(self, rank=rank)), partial(end_with_them, channel, end))
        try:
            return ParallelExecutor(make(self.config, followers.rank), followers)
        except BaseException:
            followers.close(patience=0.0)
            raise


def load_text(config: EngineConfig) -> TextParts:
    """Tokenizer, chat template and sampling defaults of the configured model."""
    from ramet.runtime.model_files import generation_defaults, locate_model
    from ramet.runtime.text.chat_template import load_chat_template
    from ramet.runtime.text.tokenizer import load_tokenizer

    files = locate_model(config.model.model_path, revision=config.model.revision)
    text_files = files if config.model.tokenizer_path is None else locate_model(config.model.tokenizer_path)
    tokenizer = load_tokenizer(text_files)
    template = load_chat_template(text_files, tokenizer, config.model.chat_template)
    return TextParts(tokenizer, template, generation_defaults(files))


def flat_options(config: EngineConfig) -> dict[str, Any]:
    """The inverse of `EngineConfig.from_options`."""
    return {name: value for section in asdict(config).values() for name, value in section.items()}


def _resolved(factory: str | Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


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


def _scheduler(config: EngineConfig, executor: Executor, compiler: GrammarCompiler | None) -> Scheduler:
    capacity, model = executor.capacity, executor.model
    cache: Cache
    if config.memory.disable_radix_cache:
        cache = NoCache(capacity.num_pages, capacity.page_size)
    else:
        cache = PrefixCache(capacity.num_pages, capacity.page_size, config.memory.radix_eviction_policy)
    return Scheduler(
        capacity,
        model.context_len,
        model.vocab_size,
        config.schedule,
        cache,
        compiler,
        seed=config.model.random_seed,
        num_guesses=_num_guesses(config.speculative),
        memory=config.memory,
    )


def _num_guesses(config: SpeculativeConfig) -> int:
    if config.speculative_algorithm != "NGRAM":
        return 0
    return config.speculative_num_draft_tokens or 4
