"""Attention over keys and values in 16 and in 8 bits at the shape of an 8B model: microseconds of one layer, and tokens that fit.

python -m benchmarks.gpu.fp8_kv
"""

from __future__ import annotations

import torch

from benchmarks.gpu.quantized_linear import DEVICE, microseconds
from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.triton_backend import TritonAttention

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
CASES = {"decode": [(1, 2048), (8, 2048), (64, 1024), (64, 4096), (256, 1024)], "prompt": [(4, 4096), (1, 16384)]}


def batch_of(rows: int, length: int, *, prompt: bool) -> ForwardBatch:
    new = length if prompt else 1
    tokens = torch.zeros(rows * new, dtype=torch.int64, device=DEVICE)
    table = torch.randperm(rows * length, device=DEVICE, dtype=torch.int64).to(torch.int32).view(rows, length)
    places = table[:, length - new :].reshape(-1).long()
    starts = torch.arange(0, rows * new + 1, new, dtype=torch.int32, device=DEVICE)
    lens = torch.full((rows,), length, dtype=torch.int32, device=DEVICE)
    return ForwardBatch(tokens, tokens, places, starts, lens, table, tokens[:rows], (new,) * rows, (length,) * rows)


def layer_time(rows: int, length: int, dtype: torch.dtype, *, prompt: bool) -> float:
    batch = batch_of(rows, length, prompt=prompt)
    layers = 4  # takes turns, so that nothing stays in cache
    pool = KVPool(*(tuple(torch.randn(rows * length, KV_HEADS, HEAD_DIM, device=DEVICE).to(dtype) for _ in range(layers)) for _ in "kv"), 1)
    attention = TritonAttention(num_heads=HEADS, num_kv_heads=KV_HEADS, device=DEVICE)
    attention.prepare(batch, pool)
    query = torch.randn(len(batch.token_ids), HEADS, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    return microseconds(lambda i: attention.attend(query, i, HEAD_DIM**-0.5, None, None), layers)


def main() -> None:
    for kind, cases in CASES.items():
        for rows, length in cases:
            times = [layer_time(rows, length, dtype, prompt=kind == "prompt") for dtype in (torch.bfloat16, torch.float8_e4m3fn)]
            read = rows * length * KV_HEADS * HEAD_DIM * 2
            speeds = ", ".join(f"{read * size / time / 1e6:.2f} TB/s" for size, time in zip((2, 1), times, strict=True))
            print(
                f"{kind} {rows:4} x {length:6}: bf16 {times[0]:8.1f} us, fp8 {times[1]:8.1f} us, {times[0] / times[1]:.2f}x ({speeds})",
                flush=True,
            )


if __name__ == "__main__":
    main()
