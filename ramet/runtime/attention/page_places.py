"""Where a row's tokens lie in the pool."""

from __future__ import annotations

import numpy as np
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch


def row_places(batch: ForwardBatch, rows: torch.Tensor, positions: torch.Tensor, page_size: int) -> torch.Tensor:
    """Places [B, N] in the pool of `positions` [B, N] of `rows` [B]. Positions must lie inside their rows: columns of the page
    table past a row's length are undefined."""
    pages = batch.page_table[rows].gather(1, positions // page_size).long()
    return pages * page_size + positions % page_size


def contiguous_start(batch: ForwardBatch, row: int, page_size: int) -> int | None:
    """First place of `row` when its tokens lie side by side in the pool, else None. Only known where the table is on the host."""
    if batch.page_table.device.type != "cpu":
        return None
    num_pages = -(-batch.kv_lens_host[row] // page_size)
    pages = batch.page_table[row, :num_pages].numpy()
    if pages[-1] - pages[0] != num_pages - 1 or not bool(np.all(pages[1:] - pages[:-1] == 1)):
        return None
    return int(pages[0]) * page_size
