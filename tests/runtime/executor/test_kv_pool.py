from __future__ import annotations

import pytest
import torch

from ramet.errors import OutOfMemory
from ramet.runtime.executor.kv_pool import allocate_pool, kv_bytes_per_token
from ramet.runtime.plan import ModelInfo

MODEL = ModelInfo("m", "Test", 100, 512, 3, 2, 8, 0, 0, 0, "float32")
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_are_those_of_the_tensors(dtype: torch.dtype) -> None:
    pool = allocate_pool(MODEL, num_pages=5, page_size=4, dtype=dtype, device=CPU)
    assert len(pool.keys) == len(pool.values) == 3 and pool.page_size == 4
    assert pool.keys[0].shape == (20, 2, 8) and pool.values[2].dtype == dtype
    held = sum(t.untyped_storage().nbytes() for t in (*pool.keys, *pool.values))
    assert held == 20 * kv_bytes_per_token(MODEL, dtype)
    assert len({t.data_ptr() for t in (*pool.keys, *pool.values)}) == 6


def test_a_refusal_names_the_flag() -> None:
    with pytest.raises(OutOfMemory, match=r"lower --max-total-tokens"):
        allocate_pool(MODEL, num_pages=2**48, page_size=1, dtype=torch.float32, device=CPU)
