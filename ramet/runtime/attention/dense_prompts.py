"""Long prompts that a step computes from their first token: their keys are few enough to lay side by side, and cuDNN's attention over dense
keys is twice as fast on Hopper as a kernel that follows pages.

cuDNN plans for every length anew, half a second each, so that rows are padded to one of a few lengths; causality hides the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

LEAST_TOKENS = 2048
_LENGTHS = (2048, 3072, 4096, 6144, 8192)


@dataclass(frozen=True, slots=True)
class DensePrompt:
    """Tokens first_token … first_token+length-1 of the step are a whole row."""

    first_token: int
    length: int


def find_dense(query_lens: Sequence[int], kv_lens: Sequence[int]) -> dict[int, DensePrompt]:
    """By row: the rows worth it."""
    found: dict[int, DensePrompt] = {}
    start = 0
    for row, (query_len, kv_len) in enumerate(zip(query_lens, kv_lens, strict=True)):
        if LEAST_TOKENS <= query_len <= _LENGTHS[-1] and query_len == kv_len:
            found[row] = DensePrompt(start, query_len)
        start += query_len
    return found


def attend_dense(
    query: torch.Tensor,  # [T, H, D] of the step
    keys: torch.Tensor,  # [slots, KH, D]
    values: torch.Tensor,
    kv_slots: torch.Tensor,  # [T]
    prompt: DensePrompt,
    out: torch.Tensor,  # [T, H, D]
    scale: float,
) -> None:
    """Causal attention of one row, written to its tokens of `out`."""
    tokens = slice(prompt.first_token, prompt.first_token + prompt.length)
    places = kv_slots[tokens]
    length = next(n for n in _LENGTHS if n >= prompt.length)
    q, k, v = (_batched(part, length) for part in (query[tokens], keys.index_select(0, places), values.index_select(0, places)))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    out[tokens] = attended[0, :, : prompt.length].transpose(0, 1)


def _batched(heads: torch.Tensor, length: int) -> torch.Tensor:
    """[n, heads, D] → [1, heads, length, D]."""
    missing = length - heads.shape[0]
    return (F.pad(heads, (0, 0, 0, 0, 0, missing)) if missing else heads)[None].transpose(1, 2)
