"""What a worker is made of, by name, so that the same description starts it on a thread or in another process. Light: the front has to
read it before it can start the process that takes longest."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.generation_engine import ChatTemplate, Tokenizer
from ramet.runtime.executor.executor import Executor, Rank

ExecutorFactory = Callable[..., Executor]
MODEL_EXECUTOR = "ramet.runtime.executor.default_executor:create_executor"
MODEL_TEXT = "ramet.runtime.engine.worker_parts:load_text"


@dataclass(frozen=True, slots=True)
class TextParts:
    """All of a model that has to do with text; small, and loaded by front and worker alike."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    generation_defaults: Mapping[str, Any]


TextFactory = Callable[[EngineConfig], TextParts]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """`executor` and `text` are factories, or where to find them ("module:function"). Only the latter can go to another process. With a
    `rank` it describes a process that follows tensor-parallel rank 0; where there are ranks, an executor's factory is given one too."""

    config: EngineConfig
    executor: str | ExecutorFactory = MODEL_EXECUTOR
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
        text: TextParts = resolved(self.text)(self.config)
        return text


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


def resolved(factory: str | Callable[..., Any]) -> Callable[..., Any]:
    """The factory itself, found by its name where it is one."""
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
