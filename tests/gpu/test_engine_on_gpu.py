"""The whole engine on a CUDA device: each fast way against its slow twin, token by token."""

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
from tests.runtime.models.tiny_models import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def generate(path: Path, **options: Any) -> list[tuple[int, ...]]:
    config = EngineConfig.from_options(
        {"model_path": str(path), "dtype": "float32", "device": "cuda", "max_total_tokens": 4096, "grammar_backend": "none", **options}
    )
    engine = AsyncEngine.start_now(config, worker="thread", text_factory="benchmarks.gpu.peer_factory:no_text")
    shared = tuple(range(3, 43))
    prompts = [shared[: 5 + 7 * (i % 6)] + tuple((5 * i + j) % 90 for j in range(1 + i)) for i in range(14)]
    try:
        sampling = SamplingParams(max_new_tokens=24, temperature=0.0, ignore_eos=True)
        asked = [Generation(request_id=str(i), input_ids=prompt, sampling=sampling) for i, prompt in enumerate(prompts)]
        return [delta.token_ids for delta in asyncio.new_event_loop().run_until_complete(complete_all(engine, asked))]
    finally:
        engine.close_now()


def test_fast_ways_and_slow_twins_agree(tmp_path: Path) -> None:
    tiny_model("Llama", hidden_size=64, head_dim=16).save_pretrained(tmp_path)
    expected = generate(tmp_path)
    assert generate(tmp_path, disable_overlap_schedule=True) == expected
    # Padded steps, kernels that multiply float32 in tf32, and what is left of a prompt behind a cached prefix, which as few tokens is
    # attended to in other pieces, round another way: where a choice is close it may differ.
    for options in ({"disable_radix_cache": True}, {"disable_cuda_graph": True}, {"attention_backend": "torch"}):
        other = generate(tmp_path, **options)
        assert sum(left == right for left, right in zip(other, expected, strict=True)) >= len(expected) - 3, options


@pytest.mark.parametrize("option", ["disable_overlap_schedule", "disable_cuda_graph", "disable_radix_cache"])
def test_deterministic_inference_gives_the_same_tokens_on_every_way(tmp_path: Path, option: str) -> None:
    tiny_model("Llama", hidden_size=64, head_dim=16).save_pretrained(tmp_path)
    settings = {"enable_deterministic_inference": True, "chunked_prefill_size": 16}
    assert generate(tmp_path, **settings, **{option: True}) == generate(tmp_path, enable_deterministic_inference=True)
