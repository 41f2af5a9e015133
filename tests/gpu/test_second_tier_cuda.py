"""KV that leaves the GPU comes back from pinned memory and from files with the same bytes, and so with the same tokens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ramet.runtime.attention.attention_backend import KVPool
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.fan_out import complete_all
from ramet.runtime.executor.page_mover import PageMover
from ramet.runtime.plan import PageMove
from ramet.runtime.request import EngineStats, Generation, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("page_size", [1, 16])
def test_pages_survive_the_way_to_host_memory(page_size: int, dtype: torch.dtype) -> None:
    num_pages, shape = 4096 // page_size, (4096, 8, 128)
    layers = [torch.randn(shape, device="cuda").to(dtype) for _ in range(8)]
    pool = KVPool(tuple(layers[:4]), tuple(layers[4:]), page_size)
    mover = PageMover(pool, 16, 64 // page_size)
    before = [layer.view(torch.uint8).clone() for layer in layers]
    size, order = mover.block_pages, torch.randperm(num_pages, generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [tuple(order[index * size : (index + 1) * size]) for index in range(32)]
    mover.run([PageMove(True, index, 0, chosen[index]) for index in range(16)])
    mover.run([PageMove(False, index, 0, chosen[31 - index]) for index in range(16)])
    torch.cuda.synchronize()
    source = torch.arange(4096, device="cuda")
    for index in range(16):
        source[places(chosen[31 - index], page_size)] = places(chosen[index], page_size)
    assert all(torch.equal(layer.view(torch.uint8), old[source]) for layer, old in zip(layers, before, strict=True))


def places(pages: tuple[int, ...], page_size: int) -> torch.Tensor:
    return (torch.tensor(pages)[:, None] * page_size + torch.arange(page_size)).reshape(-1).cuda()


def ask(path: Path, rounds: int, **options: Any) -> tuple[list[tuple[int, ...]], EngineStats]:
    """Every prompt in turn, `rounds` times; in float32, since prefixes are cached to other lengths and half precision would show it."""
    fields = {
        "model_path": str(path),
        "load_format": "dummy",
        "dtype": "float32",
        "device": "cuda",
        "grammar_backend": "none",
        "random_seed": 5,
        **options,
    }
    engine = AsyncEngine.start_now(EngineConfig.from_options(fields), worker="thread", text_factory="benchmarks.gpu.peer_factory:no_text")
    loop = asyncio.new_event_loop()
    sampling = SamplingParams(max_new_tokens=8, temperature=0.0, ignore_eos=True)
    outputs = []
    try:
        for turn in range(rounds * 6):
            prompt = tuple((7 * turn % 6 + 3 * token + token * token // 5) % 500 for token in range(300))
            asked = [Generation(request_id=str(turn), input_ids=(turn % 6 + 1, *prompt), sampling=sampling)]
            outputs += [delta.token_ids for delta in loop.run_until_complete(complete_all(engine, asked))]
        return outputs, loop.run_until_complete(engine.stats())
    finally:
        engine.close_now()


@pytest.mark.parametrize("page_size", [1, 16])
def test_tokens_are_those_of_a_cache_that_never_evicts(tmp_path: Path, page_size: int) -> None:
    model, kept = tmp_path / "model", tmp_path / "kv"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TINY))
    expected, _ = ask(model, 2, max_total_tokens=8192, page_size=page_size)
    tier = {"enable_hierarchical_cache": True, "hicache_ratio": 8.0}
    found, stats = ask(model, 2, max_total_tokens=640, page_size=page_size, **tier)
    assert found == expected
    assert stats.loaded_tokens_total >= 6 * 128 and stats.evicted_tokens_total > 0
    files = {"hicache_storage_backend": "file", "hicache_storage_dir": str(kept)}
    assert ask(model, 1, max_total_tokens=640, page_size=page_size, **tier, **files)[0] == expected[:6]
    again, stats = ask(model, 1, max_total_tokens=640, page_size=page_size, **tier, **files)
    assert again == expected[:6] and stats.disk_loaded_tokens_total >= 6 * 128
