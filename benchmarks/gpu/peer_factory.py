"""Ramet behind the interface of the peer comparison: token lists in, counts out.

    python peer_workloads.py --engine ours --ours benchmarks.gpu.peer_factory:make_engine

The engine is `ramet.Engine`'s own: scheduler and model in a process of their own, requests over the channel, greedy, ignore_eos. Options
come with `--extra '{"disable_cuda_graph": true}'`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.fan_out import complete_all
from ramet.runtime.engine.worker_parts import MODEL_EXECUTOR, MODEL_TEXT, TextParts
from ramet.runtime.request import Delta, Generation, SamplingParams
from ramet.version import __version__

CONTEXT_LEN = 8192


def make_engine(model_dir: str, args: Namespace) -> PeerEngine:
    return PeerEngine(model_dir, with_text=args.w5, extra=json.loads(args.extra))


class PeerEngine:
    """`generate`: how many tokens came out, and how many prompt tokens the cache had. `constrained`: how many, and the text."""

    version = __version__

    def __init__(self, model_dir: str, *, with_text: bool, extra: Mapping[str, Any], executor_factory: str = MODEL_EXECUTOR) -> None:
        options = {
            "model_path": model_dir, "load_format": "dummy", "dtype": "bfloat16", "context_length": CONTEXT_LEN, "device": "cuda",
            "log_level": "info", "grammar_backend": "llguidance" if with_text else "none", **extra,
        }  # fmt: skip
        text = MODEL_TEXT if with_text else "benchmarks.gpu.peer_factory:no_text"
        self._loop = asyncio.new_event_loop()
        self._engine = AsyncEngine.start_now(EngineConfig.from_options(options), executor_factory=executor_factory, text_factory=text)
        self._ids = itertools.count()

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> list[tuple[int, int]]:
        limits = [SamplingParams(max_new_tokens=n, temperature=0.0, ignore_eos=True) for n in max_tokens]
        return [(delta.completion_tokens, delta.cached_tokens) for delta in self._complete(prompts, limits)]

    def constrained(self, prompts: Sequence[Sequence[int]], max_tokens: int, schema: Mapping[str, Any]) -> list[tuple[int, str]]:
        sampling = SamplingParams(max_new_tokens=max_tokens, temperature=0.0, json_schema=json.dumps(schema))
        return [(delta.completion_tokens, delta.text) for delta in self._complete(prompts, [sampling] * len(prompts))]

    def close(self) -> None:
        self._engine.close_now()
        self._loop.close()

    def _complete(self, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]) -> list[Delta]:
        generations = [
            Generation(request_id=f"peer-{next(self._ids)}", input_ids=tuple(prompt), sampling=own)
            for prompt, own in zip(prompts, sampling, strict=True)
        ]
        return self._loop.run_until_complete(complete_all(self._engine, generations))


class NoText:
    """A tokenizer for prompts that are tokens already: every id is silent."""

    vocab_size = 128256
    eos_token_ids: tuple[int, ...] = ()
    special_ids: frozenset[int] = frozenset()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise ValueError("this benchmark's model has no tokenizer; send input_ids")

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return ""

    def token_bytes(self, *, special: bool = False) -> tuple[bytes, ...]:
        return (b"",) * self.vocab_size


def no_text(config: EngineConfig) -> TextParts:
    return TextParts(NoText(), None, {})
