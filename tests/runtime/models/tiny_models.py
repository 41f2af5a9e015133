"""Tiny transformers models with random weights, saved to disk, and how to run ours over a paged pool beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.weights import LoadedModel, load_model
from ramet.runtime.model_files import ModelFiles, locate_model

VOCAB = 96
SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """A transformers model of `family` ("Llama", "Gemma3Text", …) whose every weight is random, norms and biases included."""
    config = getattr(transformers, f"{family}Config")(**{**SIZE, **changes})
    config._attn_implementation = "eager"
    model_class = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")
    torch.manual_seed(0)
    model = model_class(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and "Gemma" not in family else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    model.tie_weights()
    return model


def load_directory(path: Path, *, overrides: str = "{}", context_length: int | None = None) -> LoadedModel:
    config = ModelConfig(json_model_override_args=overrides, context_length=context_length)
    return load(locate_model(str(path)), config)


def load(files: ModelFiles, config: ModelConfig | None = None) -> LoadedModel:
    return load_model(config or ModelConfig(), device="cpu", dtype=torch.float32, files=files)


@dataclass
class Sequencer:
    """Runs one sequence through a loaded model, piece by piece, on pages in a shuffled order."""

    loaded: LoadedModel
    num_tokens: int = 128
    length: int = 0
    attention: TorchAttention = field(default_factory=TorchAttention)

    def __post_init__(self) -> None:
        info = self.loaded.info
        shape = (self.num_tokens, info.num_kv_heads, info.head_dim)
        self.pool = KVPool(
            tuple(torch.full(shape, float("nan")) for _ in range(info.num_layers)),
            tuple(torch.full(shape, float("nan")) for _ in range(info.num_layers)),
            page_size=1,
        )
        self.pages = torch.randperm(self.num_tokens, generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def run(self, token_ids: Sequence[int], wanted: Sequence[int] | None = None) -> torch.Tensor:
        """Logits [len(wanted), vocab] of the new tokens at indices `wanted` (None: all)."""
        count, start = len(token_ids), self.length
        self.length += count
        batch = ForwardBatch(
            token_ids=torch.tensor(token_ids),
            positions=torch.arange(start, self.length),
            kv_slots=self.pages[start : self.length],
            query_starts=torch.tensor([0, count], dtype=torch.int32),
            kv_lens=torch.tensor([self.length], dtype=torch.int32),
            page_table=self.pages[None].to(torch.int32),
            logit_indices=torch.arange(count) if wanted is None else torch.tensor(wanted),
            query_lens=(count,),
            kv_lens_host=(self.length,),
        )
        self.attention.prepare(batch, self.pool)
        logits: torch.Tensor = self.loaded.model(batch, self.attention)
        return logits


def assert_close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Equal within `tolerance` of the largest logit."""
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert error < tolerance, f"relative error {error:.2e}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny products only lose by threads, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def check_against(model: PreTrainedModel, loaded: LoadedModel, length: int = 40) -> None:
    """Whole prefill, chunked prefill and decode against one forward pass of transformers."""
    ids = torch.randint(0, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].float()
    assert_close(Sequencer(loaded).run(ids), wanted)
    pieces = Sequencer(loaded)
    chunks = [pieces.run(ids[:7]), pieces.run(ids[7:24])]
    decoded = [pieces.run([token]) for token in ids[24:]]
    assert_close(torch.cat(chunks + decoded), wanted)
