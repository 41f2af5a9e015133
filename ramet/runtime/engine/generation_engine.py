"""What the server (and anything else that wants text) may expect of an engine; `AsyncEngine` is the real one, tests use a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ramet.program.backend import ChatFormat
from ramet.runtime.cache_view import CacheView, Lookup
from ramet.runtime.config import EngineConfig
from ramet.runtime.plan import ModelInfo
from ramet.runtime.request import Delta, EngineStats, Generation, KvHint


class Tokenizer(Protocol):
    """Text ↔ token ids. Thread-safe."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """`add_special_tokens` adds what the model's tokenizer itself puts around a text (usually a BOS)."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, *, special: bool = False) -> tuple[bytes, ...]:
        """For every id the bytes it adds to a text. Special tokens add b"", or with `special` their own text."""
        ...


class ChatTemplate(Protocol):
    """The model's own Jinja chat template, sandboxed."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Messages → prompt text. Raises `InvalidRequest` with the template's own message when it refuses them."""
        ...

    def chat_format(self) -> ChatFormat:
        """The template as borders, derived by rendering probes; raises `Unsupported` where it cannot be taken apart."""
        ...


@dataclass(frozen=True, slots=True)
class Health:
    """`alive`: the worker answers. `idle_seconds`: since its last step finished while work was waiting (0.0 when idle)."""

    alive: bool
    idle_seconds: float
    message: str = ""


class GenerationEngine(Protocol):
    """Text in, text out, on any event loop or thread."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def config(self) -> EngineConfig: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> ChatTemplate | None: ...

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """Sampling defaults of the model's generation_config.json (temperature, top_p, top_k, repetition_penalty)."""
        ...

    def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        """Stream one generation. Raises `UserError` before the first delta when the request is not legal; failures after that end the
        stream with a `Finish` of kind abort or error. Closing the iterator aborts the generation at the next step."""
        ...

    async def complete(self, generation: Generation) -> Delta:
        """The whole generation as one delta: what `generate` streams, joined, without waking the caller at every token. Cancelling the
        awaiting task aborts it."""
        ...

    async def abort(self, request_id: str) -> bool:
        """Abort exactly this request; False when it is not running."""
        ...

    async def abort_all(self) -> int: ...

    def hint_kv(self, hint: KvHint) -> None:
        """Tell the cache what a program run knows of its KV. Never waits and never raises: a hint that gets lost changes no output."""
        ...

    async def flush_cache(self) -> bool:
        """Empty the prefix cache; False (and nothing done) while requests run or wait."""
        ...

    async def cache_view(self, max_nodes: int = 200) -> CacheView:
        """The prefix cache as it is: the largest parts of its tree, its counters, where prompts part."""
        ...

    async def explain_cache(self, request_id: str) -> Lookup | None:
        """How the prompt of this request was looked up; None when it is unknown or too long ago."""
        ...

    async def stats(self) -> EngineStats: ...

    def health(self) -> Health: ...

    async def close(self) -> None: ...
