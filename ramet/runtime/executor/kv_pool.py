"""The paged KV pool: how many bytes a token costs, and the tensors."""

from __future__ import annotations

import torch

from ramet.errors import OutOfMemory
from ramet.runtime.attention.attention_backend import KVPool
from ramet.runtime.plan import ModelInfo


def kv_bytes_per_token(model: ModelInfo, dtype: torch.dtype) -> int:
    """Keys and values of one token over all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize


def allocate_pool(model: ModelInfo, *, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device) -> KVPool:
    """Uninitialised tensors [num_pages * page_size, KH, D], two per layer. On CPU the system hands out their memory only when it is
    written. Raises `OutOfMemory` when the device refuses."""
    shape = (num_pages * page_size, model.num_kv_heads, model.head_dim)
    try:
        keys, values = ([torch.empty(shape, dtype=dtype, device=device) for _ in range(model.num_layers)] for _ in range(2))
    except RuntimeError as error:
        size = kv_bytes_per_token(model, dtype) * shape[0]
        raise OutOfMemory(
            f"the device refused {size / 2**30:.2f} GiB for a KV cache of {shape[0]} tokens; lower --max-total-tokens "
            f"or --mem-fraction-static, or free memory that other processes hold"
        ) from error
    return KVPool(tuple(keys), tuple(values), page_size)
