"""Ranks on GPUs of one host: equal tokens for 1 and 2 (and 4) of them, with and without CUDA graphs; and a rank that dies while the
others are in a collective operation on the device."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.plan import RowResult
from ramet.runtime.request import FinishKind, Generation, SamplingParams
from tests.runtime.executor.rank_plans import VOCAB, check_equal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": 8},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "sliding_window": 9, "query_pre_attn_scalar": 32,
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
}  # fmt: skip


def write_models(path: Path) -> Path:
    for name, changes in MODELS.items():
        (path / "models" / name).mkdir(parents=True)
        (path / "models" / name / "config.json").write_text(json.dumps({**SHAPE, **changes}))
    return path / "models"


def run_ranks(path: Path, size: int, only: str = "*", **options: Any) -> dict[str, list[tuple[RowResult, ...]]]:
    """Answers by model, of those whose names match `only`."""
    name = f"{size}-{len(list(path.iterdir()))}"
    meeting, out = path / f"meeting-{name}", path / f"answers-{name}"
    meeting.mkdir()
    words = [str(meeting), str(path / "models"), only, json.dumps(options), str(out)]
    ranks = [subprocess.Popen([sys.executable, "-m", "tests.gpu.rank_process", str(i), str(size), *words]) for i in range(size)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()
    return msgspec.json.decode(out.read_bytes(), type=dict[str, list[tuple[RowResult, ...]]])


def test_ranks_give_the_tokens_of_one(tmp_path: Path) -> None:
    write_models(tmp_path)
    alone = run_ranks(tmp_path, 1)
    runs = [run_ranks(tmp_path, 2), run_ranks(tmp_path, 2, "llama", disable_cuda_graph=True)]
    if torch.cuda.device_count() >= 4:
        runs.append(run_ranks(tmp_path, 4))
    for together in runs:
        for model, answers in together.items():
            check_equal(alone[model], answers)


async def test_a_rank_killed_in_the_middle_of_a_step(tmp_path: Path) -> None:
    model = write_models(tmp_path) / "llama"
    options = {"model_path": str(model), "load_format": "dummy", "tp_size": 2, "max_total_tokens": 8192, "grammar_backend": "none"}
    engine = AsyncEngine.start_now(EngineConfig.from_options(options), text_factory="tests.fakes:fake_text")

    def ask(number: int, length: int) -> asyncio.Task[Any]:
        sampling = SamplingParams(max_new_tokens=length, temperature=0.0, ignore_eos=True)
        return asyncio.create_task(engine.complete(Generation(request_id=f"r{number}", input_ids=(5, 6, 7 + number), sampling=sampling)))

    try:
        assert (await ask(0, 20)).finish.kind is FinishKind.LENGTH
        running = [ask(1 + i, 3000) for i in range(2)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in running)
        (follower,) = (p for p in psutil.Process(engine.worker_process_id).children() if "ramet.runtime.engine.worker_main" in p.cmdline())
        os.kill(follower.pid, signal.SIGKILL)
        began = time.monotonic()
        async with asyncio.timeout(15):
            for delta in await asyncio.gather(*running):
                assert (delta.finish.kind, delta.finish.code) == (FinishKind.ERROR, "worker_died")
                assert "rank 1 ended" in delta.finish.message
        print(f"every request ended {time.monotonic() - began:.1f} s after the kill")
        async with asyncio.timeout(60):
            while not engine.health().alive:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await ask(9, 20)).finish.kind is FinishKind.LENGTH
    finally:
        await engine.close()
