"""An engine over models with experts: transformers' greedy tokens, whatever is cached, cut into pieces or computed together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.fan_out import complete_all
from ramet.runtime.request import Generation, SamplingParams
from tests.runtime.models.tiny_models import one_thread, tiny_model

NUM_TOKENS = 12
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
SHARED = tuple(range(3, 43))
PROMPTS = [SHARED[: 5 + 11 * (i % 4)] + tuple((5 * i + j) % 90 for j in range(1 + i)) for i in range(6)]


def generate(path: Path, **options: Any) -> list[tuple[int, ...]]:
    settings = {"model_path": str(path), "device": "cpu", "max_total_tokens": 2048, "grammar_backend": "none", **options}
    engine = AsyncEngine.start_now(EngineConfig.from_options(settings), worker="thread", text_factory="benchmarks.gpu.peer_factory:no_text")
    try:
        sampling = SamplingParams(max_new_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        asked = [Generation(request_id=str(i), input_ids=prompt, sampling=sampling) for i, prompt in enumerate(PROMPTS)]
        return [delta.token_ids for delta in asyncio.run(complete_all(engine, asked))]
    finally:
        engine.close_now()


@pytest.mark.parametrize(
    ("family", "changes"),
    [("Mixtral", {"num_local_experts": 4}), ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 16, "mlp_only_layers": [1]})],
)
@one_thread()
def test_greedy_tokens_are_those_of_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(family, **changes)
    model.save_pretrained(tmp_path)
    expected = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = list(prompt)
            for _ in range(NUM_TOKENS):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            expected.append(tuple(ids[len(prompt) :]))
    assert generate(tmp_path) == expected
    assert generate(tmp_path, chunked_prefill_size=16, max_running_requests=3) == expected
    assert generate(tmp_path, disable_radix_cache=True) == expected
