"""An EAGLE-3 head on a CUDA device: its guesses are the plain head's, with graphs and without, and output does not depend on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.test_eagle_speculation import run
from tests.runtime.models.tiny_heads import CONFIG, PlainHead, head_tensors, save_head
from tests.runtime.models.tiny_models import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("options", [{}, {"disable_cuda_graph": True}, {"page_size": 16}, {"attention_backend": "torch"}], ids=str)
def test_guesses_are_the_plain_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """But where the kernels' tf32 decides a close choice otherwise."""
    config = CONFIG | {"hidden_size": 64}
    model = tiny_model("Llama", num_hidden_layers=7, hidden_size=64, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "model")
    tensors = head_tensors(model, config)
    head = save_head(tmp_path / "head", tensors, config)
    settings = {"device": "cuda", "dtype": "float32", "disable_radix_cache": True, **options}
    ran, without = run(monkeypatch, tmp_path / "model", head, **settings), run(monkeypatch, tmp_path / "model", None, **settings)
    assert sum(left == right for left, right in zip(ran.tokens, without.tokens, strict=True)) >= len(ran.tokens) - 1
    plain = PlainHead(model, tensors, config)
    assert all(guessed for _, guessed in ran.guesses)  # else the head was given up
    alike = [guessed == plain.chain(known, len(guessed)) for known, guessed in ran.guesses]
    assert len(alike) > 50 and sum(alike) > 0.9 * len(alike)
