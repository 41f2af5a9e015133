"""What a grammar forbids, out of the logits in one pass. Torch: logits[rows] masked_fill with -inf where a token's bit is not set."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ramet.runtime.kernels.gpu.launch import launch_options

_BLOCK = 4096


def mask_logits(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """`logits` [S, vocab] float32, changed in place; `rows` [n] int32, which of them; `bits` [n, words] int32 (layout: `TokenMasks`)."""
    vocab = logits.shape[1]
    _mask_logits[(rows.shape[0], triton.cdiv(vocab, _BLOCK))](
        logits, rows, bits, logits.stride(0), bits.stride(0), VOCAB=vocab, BLOCK=_BLOCK, num_warps=8, **launch_options(logits.device)
    )


@triton.jit(do_not_specialize=["bits_stride"], do_not_specialize_on_alignment=["rows", "bits"])
def _mask_logits(logits, rows, bits, logits_stride, bits_stride, VOCAB: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    nth, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = part * BLOCK + tl.arange(0, BLOCK)
    inside = token < VOCAB
    row = tl.load(rows + nth).to(tl.int64)
    word = tl.load(bits + nth * bits_stride + token // 32, mask=inside, other=0)
    tl.store(logits + row * logits_stride + token, float("-inf"), mask=inside & ((word >> (token % 32)) & 1 == 0))
