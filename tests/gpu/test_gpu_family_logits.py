"""Every family on a GPU, through our kernels in bfloat16: transformers' logits of the same rounded weights, for prompts, chunks, decode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.weights import LoadedModel, load_model
from ramet.runtime.model_files import locate_model
from tests.runtime.models.test_family_logits import CASES
from tests.runtime.models.tiny_models import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda", 0)
PIECES = (25, 9, 3, 1, 1, 1, 2, 1, 1)
SLOTS = 64


def piece_of(ids: torch.Tensor, start: int, count: int, pages: torch.Tensor) -> ForwardBatch:
    """Tokens `start` … of one row whose pages of one token are `pages`; all their logits are wanted."""
    end = start + count
    position = torch.arange(start, end)
    int32 = {"dtype": torch.int32}
    numbers = (ids[start:end], position, pages[position], torch.tensor([0, count], **int32), torch.tensor([end], **int32))
    parts = (*numbers, pages[None].to(torch.int32), torch.arange(count))
    return ForwardBatch(*(part.to(DEVICE) for part in parts), (count,), (end,))


def logits_of(loaded: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.models.fused_step import FusedStep

    info, spec = loaded.info, loaded.spec
    shape = (SLOTS, info.num_kv_heads, info.head_dim)
    both = [tuple(torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(info.num_layers)) for _ in range(2)]
    pool, pages = KVPool(both[0], both[1], 1), torch.randperm(SLOTS, generator=torch.Generator().manual_seed(1))
    attention = TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=DEVICE)
    step, found, start = FusedStep(loaded.model, attention), [], 0
    for count in PIECES:
        batch = piece_of(ids, start, count, pages)
        attention.prepare(batch, pool)
        found.append(step.forward(batch).clone())
        start += count
    return torch.cat(found)


@pytest.mark.parametrize("case", CASES)
def test_logits_in_half_precision(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    model = tiny_model(family, **{key: value for key, value in changes.items() if value is not None or key == "sliding_window"})
    model = model.bfloat16().float()
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 90, (sum(PIECES),), generator=torch.Generator().manual_seed(0))
    loaded = load_model(ModelConfig(), device=DEVICE, dtype=torch.bfloat16, files=locate_model(str(tmp_path)))
    with torch.inference_mode():
        wanted = model(ids[None]).logits[0]
        given = logits_of(loaded, ids).cpu()
    assert torch.isfinite(given).all()
    assert (given - wanted).norm() / wanted.norm() < 5e-2
