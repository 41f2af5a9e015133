"""Long prompts that a step computes from their first token: their keys are few enough to lay side by side, and cuDNN's attention over dense
keys is twice as fast on Hopper as a kernel that follows pages.

cuDNN plans for every length anew, half a second each, so that rows are padded to one of a few lengths; causality hides the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

LEAST_TOKENS = 2048
_LENGTHS = (2048, 3072, 4096, 6144, 8192)


@dataclass(frozen=True, slots=True)
class DensePrompts:
    """`count` whole rows of `length` tokens each, side by side in the step from `first_token` on."""

    first_token: int
    length: int
    count: int = 1

    @property
    def tokens(self) -> slice:
        return slice(self.first_token, self.first_token + self.count * self.length)


def find_dense(query_lens: Sequence[int], kv_lens: Sequence[int]) -> tuple[list[int], list[DensePrompts]]:
    """The rows worth it; and the same in groups, since neighbours that need no padding are one call."""
    rows: list[int] = []
    groups: list[DensePrompts] = []
    start = 0
    for row, (query_len, kv_len) in enumerate(zip(query_lens, kv_lens, strict=True)):
        if LEAST_TOKENS <= query_len <= _LENGTHS[-1] and query_len == kv_len:
            last = groups[-1] if groups else None
            if last is not None and last.tokens.stop == start and last.length == query_len and query_len in _LENGTHS:
                groups[-1] = replace(last, count=last.count + 1)
            else:
                groups.append(DensePrompts(start, query_len))
            rows.append(row)
        start += query_len
    return rows, groups


def attend_dense(
    query: torch.Tensor,  # [T, H, D] of the step
    keys: torch.Tensor,  # [slots, KH, D]
    values: torch.Tensor,
    kv_slots: torch.Tensor,  # [T]
    prompts: DensePrompts,
    out: torch.Tensor,  # [T, H, D]
    scale: float,
) -> None:
    """Causal attention of each row over itself, written to its tokens of `out`."""
    tokens = prompts.tokens
    places = kv_slots[tokens]
    q, k, v = (_batched(part, prompts) for part in (query[tokens], keys.index_select(0, places), values.index_select(0, places)))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    out[tokens].view(prompts.count, prompts.length, *out.shape[1:]).copy_(attended[:, :, : prompts.length].transpose(1, 2))


def _batched(heads: torch.Tensor, prompts: DensePrompts) -> torch.Tensor:
    """[count * length, heads, D] → [count, heads, padded length, D]."""
    missing = next(n for n in _LENGTHS if n >= prompts.length) - prompts.length
    rows = heads.view(prompts.count, prompts.length, *heads.shape[1:])
    return (F.pad(rows, (0, 0, 0, 0, 0, missing)) if missing else rows).transpose(1, 2)
