"""EAGLE-3 heads beside tiny models: every guess is the plain head's, output never depends on them, and a trained one is often right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.eagle_guesser import EagleGuesser
from ramet.runtime.engine.fan_out import complete_all
from ramet.runtime.request import Generation, SamplingParams
from ramet.runtime.scheduler.request_state import RequestState
from tests.runtime.models.tiny_heads import CONFIG, PlainHead, head_tensors, save_head
from tests.runtime.models.tiny_models import one_thread, tiny_model

GREEDY = SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True)
PROMPTS = [tuple((7 * i + 3 * j + j * j) % 90 + 3 for j in range(1 + 9 * i)) for i in range(5)]


@dataclass
class Ran:
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    guesses: list[tuple[list[int], list[int]]] = field(default_factory=list)  # known tokens, and those guessed behind them
    num_right: int = 0


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("Llama", num_hidden_layers=7, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def path(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def run(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    head: Path | None,
    sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
    **options: Any,
) -> Ran:
    ran, guess = Ran(), EagleGuesser.guess

    def watched(self: EagleGuesser, wanted: Sequence[tuple[RequestState, int]]) -> list[list[int]]:
        found = guess(self, wanted)
        ran.guesses += [(state.sequence().tolist(), guessed) for (state, _), guessed in zip(wanted, found, strict=True)]
        return found

    monkeypatch.setattr(EagleGuesser, "guess", watched)
    speculation = {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": str(head), "speculative_num_steps": 3}
    settings = {"model_path": str(path), "device": "cpu", "max_total_tokens": 1024, "grammar_backend": "none", **options}
    config = EngineConfig.from_options(settings | (speculation if head is not None else {}))
    engine = AsyncEngine.start_now(config, worker="thread", text_factory="benchmarks.gpu.peer_factory:no_text")
    try:
        samplings = [sampling] * len(PROMPTS) if isinstance(sampling, SamplingParams) else sampling
        asked = [Generation(request_id=str(i), input_ids=PROMPTS[i], sampling=samplings[i]) for i in range(len(PROMPTS))]
        ran.tokens = [delta.token_ids for delta in asyncio.run(complete_all(engine, asked))]
    finally:
        engine.close_now()
    return ran


@pytest.mark.parametrize(
    "options",
    [{}, {"page_size": 4}, {"chunked_prefill_size": 8, "max_running_requests": 3}, {"disable_overlap_schedule": True}],
    ids=["default", "pages of 4", "pieces", "serial"],
)
@one_thread()
def test_guesses_are_the_plain_heads(
    model: PreTrainedModel, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    tensors = head_tensors(model, CONFIG)
    ran = run(monkeypatch, path, save_head(tmp_path / "head", tensors), disable_radix_cache=True, **options)
    assert ran.tokens == run(monkeypatch, path, None).tokens
    plain = PlainHead(model, tensors)
    assert len(ran.guesses) > 50
    for known, guessed in ran.guesses:
        assert guessed == plain.chain(known, len(guessed))
