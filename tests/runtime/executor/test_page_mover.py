"""Pages go to blocks and come back as the same bytes, in the order in which they were told to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ramet.errors import OutOfMemory
from ramet.runtime.attention.attention_backend import KVPool
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.page_mover import PageMover
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.model_fingerprint import model_fingerprint
from ramet.runtime.plan import PageMove
from tests.runtime.executor.test_fake_executor import MODEL

LAYERS, PAGES, HEADS, DIM = 3, 24, 2, 8


def make_pool(page_size: int, dtype: torch.dtype) -> KVPool:
    shape, dice = (PAGES * page_size, HEADS, DIM), torch.Generator().manual_seed(1)
    layers = [torch.randn(shape, generator=dice).to(dtype) for _ in range(2 * LAYERS)]
    return KVPool(tuple(layers[:LAYERS]), tuple(layers[LAYERS:]), page_size)


def snapshot(pool: KVPool, page: int) -> list[bytes]:
    places = slice(page * pool.page_size, (page + 1) * pool.page_size)
    return [layer[places].contiguous().view(torch.uint8).numpy().tobytes() for layer in (*pool.keys, *pool.values)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("page_size", [1, 4])
def test_what_is_saved_comes_back_into_other_pages(page_size: int, dtype: torch.dtype) -> None:
    pool = make_pool(page_size, dtype)
    mover = PageMover(pool, 4, 4)
    pool_again = make_pool(page_size, dtype)  # the measurement wrote to the first pages
    for layer, fresh in zip((*pool.keys, *pool.values), (*pool_again.keys, *pool_again.values), strict=True):
        layer.copy_(fresh)
    before = {page: snapshot(pool, page) for page in range(PAGES)}
    mover.run([PageMove(True, 3, 0, (7, 2, 9, 4)), PageMove(True, 0, 0, (11, 12, 13, 14))])
    mover.run([PageMove(False, 3, 1, (20, 21, 22)), PageMove(False, 0, 0, (2, 7, 4, 9))])
    after = {page: snapshot(pool, page) for page in range(PAGES)}
    moved = {20: 2, 21: 9, 22: 4, 2: 11, 7: 12, 4: 13, 9: 14}
    assert after == {page: before[moved.get(page, page)] for page in range(PAGES)}


def test_a_page_that_is_saved_and_then_filled_keeps_both_contents_apart() -> None:
    pool = make_pool(1, torch.float32)
    mover = PageMover(pool, 2, 2)
    first, second = snapshot(pool, 5), snapshot(pool, 6)
    mover.run([PageMove(True, 1, 0, (5, 6)), PageMove(False, 1, 1, (5,)), PageMove(True, 0, 0, (5, 5)), PageMove(False, 1, 0, (6, 9))])
    assert snapshot(pool, 5) == second and snapshot(pool, 6) == first and snapshot(pool, 9) == second
    assert len(mover.view(0)) == mover.block_bytes == 2 * LAYERS * 2 * HEADS * DIM * 4
    half = mover.block_bytes // (2 * LAYERS) // 2
    assert bytes(mover.view(0)[:half]) == second[0]


def test_more_memory_than_there_is_is_refused_with_advice() -> None:
    with pytest.raises(OutOfMemory, match="--hicache-size"):
        PageMover(make_pool(1, torch.float32), 1 << 40, 4)


def test_the_fingerprint_knows_weights_types_and_layout(tmp_path) -> None:
    weights = tmp_path / "m.gguf"
    weights.write_bytes(b"a" * 5_000_000)
    files, config, info = ModelFiles("gguf", weights, "m"), EngineConfig.from_options({}), MODEL.info()
    first = model_fingerprint(config, files, info, "8x1")
    assert first == model_fingerprint(config, files, replace(info, name="another name"), "8x1")
    others = [
        model_fingerprint(config, files, info, "16x1"),
        model_fingerprint(config, files, replace(info, dtype="float16"), "8x1"),
        model_fingerprint(EngineConfig.from_options({"kv_cache_dtype": "float32"}), files, info, "8x1"),
        model_fingerprint(EngineConfig.from_options({"quantization": "q8_0"}), files, info, "8x1"),
    ]
    weights.write_bytes(b"a" * 4_999_999 + b"b")
    others.append(model_fingerprint(config, files, info, "8x1"))
    assert len({first, *others}) == 6
