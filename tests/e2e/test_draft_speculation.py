"""The embedded model guessed by itself: in full, where everything is right, and in fewer bits, where output must not change."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.engine import Engine
from ramet.runtime.engine.fan_out import complete_all
from ramet.runtime.executor.eagle_runner import EagleRunner
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, PlanRow
from ramet.runtime.request import Generation, SamplingParams
from tests.runtime.models.tiny_heads import CONFIG, head_tensors, save_head

pytestmark = pytest.mark.model
MODEL = "SmolLM2-135M-Instruct"
PROMPTS = ["The capital of France is", "One, two, three,", "def add(a, b):"]
PERSON = r'\{"name": "[a-zA-Z ]{1,20}", "age": [0-9]{1,2}\}'
ASKED: list[dict[str, Any]] = [
    {"prompt": PROMPTS, "sampling_params": {"temperature": 0, "max_new_tokens": 24}},
    {"prompt": PROMPTS, "sampling_params": [{"temperature": 1.0, "max_new_tokens": 24, "seed": i} for i in range(3)]},
    {"prompt": PROMPTS, "sampling_params": [{"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 24, "seed": i} for i in range(3)]},
    {"prompt": "A person as JSON: ", "sampling_params": {"temperature": 1.0, "regex": PERSON, "max_new_tokens": 40, "seed": 7}},
    {"prompt": "One, two, three, four,", "sampling_params": {"temperature": 0, "max_new_tokens": 24, "stop": [" seven"]}},
    {"prompt": PROMPTS[1], "sampling_params": {"temperature": 0, "max_new_tokens": 12}, "return_logprob": True, "top_logprobs_num": 2},
]


def answers(**options: Any) -> tuple[list[dict[str, Any]], int, int]:
    """Replies, guesses, right ones."""
    found: list[dict[str, Any]] = []
    with Engine(max_total_tokens=4096, log_level="error", speculative_always=True, **options) as engine:
        for asked in ASKED:
            replies = engine.generate(**asked)
            found += replies if isinstance(replies, list) else [replies]
        stats = engine.get_server_info()["internal_states"][0]
    return found, stats["guessed_tokens_total"], stats["right_guesses_total"]


@pytest.fixture(scope="module")
def plain() -> list[dict[str, Any]]:
    return answers()[0]


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one["text"], one["output_ids"]) == (other["text"], other["output_ids"])
        assert one["meta_info"]["finish_reason"] == other["meta_info"]["finish_reason"]
        for left, right in zip(*(each["meta_info"].get("output_token_logprobs", []) for each in (one, other)), strict=True):
            assert left[1:] == right[1:] and left[0] == pytest.approx(right[0], abs=1e-4)


SLOW_TWINS = pytest.param({"disable_overlap_schedule": True, "disable_radix_cache": True}, marks=pytest.mark.slow, id="slow twins")


@pytest.mark.parametrize("options", [pytest.param({}, id="default"), SLOW_TWINS])
def test_itself_as_its_draft(plain: list[dict[str, Any]], options: dict[str, Any]) -> None:
    speculation = {"speculative_algorithm": "STANDALONE", "speculative_draft_model_path": MODEL, "speculative_num_steps": 3}
    found, guessed, right = answers(**speculation, **options)
    same(found[:3] + found[10:], plain[:3] + plain[10:])  # sampled ones are others of the same distribution
    assert right > 100 and guessed - right <= 3 * len(found)  # but for what was guessed behind an end
    whole = found[0]["meta_info"]
    assert whole["spec_accept_rate"] == 1.0 and whole["spec_accept_length"] > 3.5


@pytest.mark.slow
def test_a_coarser_draft(plain: list[dict[str, Any]]) -> None:
    speculation = {"speculative_algorithm": "STANDALONE", "speculative_draft_model_path": MODEL}
    found, guessed, right = answers(**speculation, speculative_draft_model_quantization="q4_1", speculative_num_draft_tokens=4)
    same(found[:3] + found[10:], plain[:3] + plain[10:])
    same(found, answers(**speculation)[0])
    assert 0.4 < right / guessed < 1.0


@pytest.mark.slow
def test_an_eagle_head_that_knows_nothing(tmp_path: Path) -> None:
    """Random weights: hardly a guess is right, and output is what it is without; grammars and logprobs too."""
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    config = CONFIG | heads | {"hidden_size": 576, "intermediate_size": 256, "draft_vocab_size": 4096}
    target = SimpleNamespace(config=SimpleNamespace(hidden_size=576, vocab_size=49152))
    head = save_head(tmp_path / "head", head_tensors(target, config), config)
    exact = {"quantization": "none"}
    found, guessed, right = answers(speculative_algorithm="EAGLE3", speculative_draft_model_path=str(head), **exact)
    plain = answers(**exact)[0]
    same(found[:3] + found[10:], plain[:3] + plain[10:])
    assert re.fullmatch(PERSON, found[9]["text"])
    assert guessed > 100 and right < guessed / 4


def test_a_head_goes_on_from_a_feature_of_its_own_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind tokens that a grammar forced and the model has not computed yet, nothing is guessed."""
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    config = CONFIG | heads | {"hidden_size": 576, "intermediate_size": 64, "draft_vocab_size": 512}
    target = SimpleNamespace(config=SimpleNamespace(hidden_size=576, vocab_size=49152))
    head = save_head(tmp_path / "head", head_tensors(target, config), config)
    extend, forward = EagleRunner.extend, EagleRunner.forward
    computed: dict[int, tuple[str, int]] = {}  # slot → the request, and how far the model has come
    started: list[tuple[tuple[str, int], tuple[str, int]]] = []

    def watched_extend(self: EagleRunner, rows: Sequence[PlanRow], features: torch.Tensor, last_token: torch.Tensor) -> None:
        computed.update({row.slot: (row.request_id, row.end) for row in rows})
        extend(self, rows, features, last_token)

    def watched_forward(self: EagleRunner, plan: BatchPlan) -> None:
        started.extend(((row.request_id, row.start), computed[row.slot]) for row in plan.rows if row.token_ids[0] != PENDING_TOKEN)
        forward(self, plan)

    monkeypatch.setattr(EagleRunner, "extend", watched_extend)
    monkeypatch.setattr(EagleRunner, "forward", watched_forward)
    speculation = {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": str(head), "speculative_always": True}
    options = {"quantization": "none", "device": "cpu", "max_total_tokens": 2048, "log_level": "error"}
    sampling = SamplingParams(temperature=0.0, max_new_tokens=48, regex=r'\{"the full name": "[a-z]{3,6}", "the age in years": [0-9]{2}\}')
    engine = AsyncEngine.start_now(EngineConfig.from_options({**options, **speculation}), worker="thread")
    try:
        asked = [Generation(request_id=str(i), text=text, sampling=sampling) for i, text in enumerate(("A person as JSON:", "A dog:"))]
        replies = asyncio.run(complete_all(engine, asked))
    finally:
        engine.close_now()
    assert all(re.fullmatch(str(sampling.regex), reply.text) for reply in replies)
    assert len(started) > 4
    assert all(known[0] == own and start <= known[1] for (own, start), known in started)
