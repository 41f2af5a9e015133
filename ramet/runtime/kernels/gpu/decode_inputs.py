"""What a decode step needs of the device's own memory: the token that each slot sampled last, and where the next one's keys go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """All [B] int64. `kv_slots` of padding is -1."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    kv_slots: torch.Tensor
    slots: torch.Tensor


def decode_inputs(rows: torch.Tensor, last_token: torch.Tensor, pages: torch.Tensor, page_size: int) -> DecodeInputs:
    """`rows` [3, B] int32: token (negative: the one sampled last), position (negative: padding), slot.

    Torch: where(token < 0, last_token[slot], token) and pages[slot, position // page_size] * page_size + position % page_size.
    """
    num_rows = rows.shape[1]
    out = torch.empty(4, num_rows, dtype=torch.int64, device=rows.device)
    block = 128
    _decode_inputs[(triton.cdiv(num_rows, block),)](
        rows, last_token, pages, out, num_rows, pages.stride(0), PAGE_SIZE=page_size, BLOCK=block, num_warps=4
    )
    return DecodeInputs(*out.unbind(0))


@triton.jit(do_not_specialize=["num_rows", "pages_stride"])
def _decode_inputs(rows, last_token, pages, out, num_rows, pages_stride, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    token = tl.load(rows + row, mask=inside, other=0).to(tl.int64)
    position = tl.load(rows + num_rows + row, mask=inside, other=-1).to(tl.int64)
    slot = tl.load(rows + 2 * num_rows + row, mask=inside, other=0).to(tl.int64)
    sampled = tl.load(last_token + slot, mask=inside & (token < 0), other=0)
    is_real = inside & (position >= 0)
    page = tl.load(pages + slot * pages_stride + position // PAGE_SIZE, mask=is_real, other=0).to(tl.int64)
    tl.store(out + row, tl.where(token < 0, sampled, token), mask=inside)
    tl.store(out + num_rows + row, tl.maximum(position, 0), mask=inside)
    tl.store(out + 2 * num_rows + row, tl.where(is_real, page * PAGE_SIZE + position % PAGE_SIZE, -1), mask=inside)
    tl.store(out + 3 * num_rows + row, slot, mask=inside)
