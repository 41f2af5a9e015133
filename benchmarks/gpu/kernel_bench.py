"""The GPU kernels against their floors: bytes over the measured bandwidth, operations over the measured matrix rate.

    python benchmarks/gpu/kernel_bench.py [--part linear|attention|prefill|elementwise] …

Times are medians of CUDA graph replays that rotate through buffers larger than the L2 cache, so that weights and keys come from memory.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool, SharedPrefix
from ramet.runtime.attention.flashinfer_prefill import FlashInferPrefill, PrefillShape, covers
from ramet.runtime.attention.triton_backend import TritonAttention
from ramet.runtime.kernels.gpu.elementwise import add_rms_norm, gated_activation, rotate_and_store
from ramet.runtime.kernels.gpu.greedy_choice import greedy_tokens
from ramet.runtime.kernels.gpu.skinny_linear import Blocks, skinny_linear

DEVICE = torch.device("cuda", 0)
HIDDEN, INNER, QKV, VOCAB = 4096, 14336, 6144, 128256
SHAPES = {"qkv": (QKV, HIDDEN), "out": (HIDDEN, HIDDEN), "gate_up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER), "head": (VOCAB, HIDDEN)}


def milliseconds(*runs: Callable[[], object], rounds: int = 7) -> float:
    """Median time of one of `runs`, which do the same on different memory."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for run in runs[:2]:
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        for run in runs:
            run()
        graph.capture_end()
        times = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / len(runs))
    return statistics.median(times)


def ceilings() -> tuple[float, float]:
    """Bytes per second of a copy (read and written) and bf16 operations per second of a large product."""
    x, y = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / milliseconds(*[lambda: x @ y] * 8) * 1e3
    a = torch.randn(1 << 31, device=DEVICE, dtype=torch.bfloat16)
    b = torch.empty_like(a)
    copy = 2 * a.nbytes / milliseconds(*[lambda: torch.neg(a, out=b)] * 8) * 1e3  # what a graph copies with is slower: 2.7 TB/s of 4.2
    print(f"copy {copy / 1e12:.2f} TB/s, bf16 product {product / 1e12:.0f} TFLOP/s", flush=True)
    return copy, product


def linear(bandwidth: float) -> None:
    candidates = [Blocks(n, k, w, 1) for n, k, w in ((2, 1024, 4), (4, 1024, 4), (8, 1024, 4), (4, 2048, 8), (4, 512, 2), (8, 512, 4))]
    print("linear layers, microseconds: floor | cuBLAS at 1, 16, 64 tokens | ours by blocks at 1 (best first)")
    for name, (rows, depth) in SHAPES.items():
        copies = max(2, int(300e6 // (rows * depth * 2)))
        weights = [torch.randn(rows, depth, device=DEVICE, dtype=torch.bfloat16) / 64 for _ in range(copies)]
        inputs = {t: torch.randn(t, depth, device=DEVICE, dtype=torch.bfloat16) for t in (1, 16, 64)}
        floor = rows * depth * 2 / bandwidth * 1e6
        blas = [milliseconds(*[lambda w=w, x=x: F.linear(x, w) for w in weights]) * 1e3 for x in inputs.values()]
        print(f"{name:8} {floor:7.1f} | " + " ".join(f"{t:7.1f}" for t in blas), flush=True)
        times = [(milliseconds(*[lambda w=w, b=b: skinny_linear(inputs[1], w, blocks=b) for w in weights]) * 1e3, b) for b in candidates]
        times.sort(key=lambda pair: pair[0])
        print("   " + "; ".join(f"{t:.1f} n{b.rows} k{b.depth} w{b.warps}" for t, b in times), flush=True)
        print(f"   at 16 tokens {milliseconds(*[lambda w=w: skinny_linear(inputs[16], w) for w in weights]) * 1e3:.1f}", flush=True)


def batch_of(query_lens: list[int], kv_lens: list[int], pool_tokens: int, shared: int = 0, group: int = 16) -> ForwardBatch:
    """Rows on scattered pages of one token; with `shared`, rows of a group have their first tokens in common."""
    table = torch.zeros(len(kv_lens), max(kv_lens), dtype=torch.int32)
    pages = torch.randperm(pool_tokens, dtype=torch.int32)
    used = 0
    for row, length in enumerate(kv_lens):
        table[row, :length] = pages[used : used + length]
        used += length
        if shared and row % group:
            table[row, :shared] = table[row - row % group, :shared]
    starts = np.concatenate(([0], np.cumsum(query_lens)))
    position = torch.cat([torch.arange(k - q, k) for q, k in zip(query_lens, kv_lens, strict=True)])
    row_of = torch.repeat_interleave(torch.arange(len(query_lens)), torch.tensor(query_lens))
    prefixes = tuple(SharedPrefix(tuple(range(i, i + group)), 0, shared) for i in range(0, len(kv_lens), group)) if shared else ()
    to = lambda t: t.to(DEVICE)
    return ForwardBatch(
        to(position), to(position), to(table[row_of, position].long()), to(torch.tensor(starts, dtype=torch.int32)),
        to(torch.tensor(kv_lens, dtype=torch.int32)), to(table), to(torch.tensor(starts[1:] - 1)), tuple(query_lens), tuple(kv_lens), prefixes,
    )  # fmt: skip


def attention(bandwidth: float, rate: float) -> None:
    layers, tokens = 4, 1 << 18
    keys = [torch.randn(tokens, 8, 128, device=DEVICE, dtype=torch.bfloat16) for _ in range(2 * layers)]
    pool = KVPool(tuple(keys[:layers]), tuple(keys[layers:]), 1)
    shape = PrefillShape(32, 8, 128, 128**-0.5, torch.bfloat16)
    own = TritonAttention(num_heads=32, num_kv_heads=8, device=DEVICE)
    theirs = covers(shape, DEVICE) and TritonAttention(
        num_heads=32, num_kv_heads=8, device=DEVICE, prefill=FlashInferPrefill(shape, DEVICE)
    )
    print("attention, microseconds per layer: measured, floor, share")
    cases = [(f"decode {b} x {n}", [1] * b, [n] * b, 0) for b, n in ((1, 256), (1, 8192), (16, 1024), (64, 192), (512, 500))]
    cases += [("decode 64 x 2240", [1] * 64, [2240] * 64, 0), ("same, prefix 2048 shared by 16", [1] * 64, [2240] * 64, 2048)]
    cases += [("prefill 2 x 4096", [4096] * 2, [4096] * 2, 0), ("prefill 14 x 576", [576] * 14, [576] * 14, 0)]
    cases += [("prefill 64 x 128 behind 2048", [128] * 64, [2176] * 64, 0)]
    for name, query_lens, kv_lens, shared in cases:
        batch = batch_of(query_lens, kv_lens, tokens, shared)
        query = torch.randn(sum(query_lens), 32, 128, device=DEVICE, dtype=torch.bfloat16)
        own.prepare(batch, pool)
        time = milliseconds(*[lambda i=i: own.attend(query, i, 128**-0.5, None, None) for i in range(layers)]) * 1e3
        distinct = sum(kv_lens) - sum(len(p.rows) * p.end - p.end for p in batch.shared_prefixes)
        work = sum(4 * 32 * 128 * q * (k - (q - 1) / 2) for q, k in zip(query_lens, kv_lens, strict=True))
        floor = max(distinct * 8 * 128 * 4 / bandwidth, work / rate) * 1e6
        if min(query_lens) > 1 and query_lens == kv_lens:
            name += f" (flash 2: {flash(query, query_lens):.0f})"
        if theirs and min(query_lens) > 1:
            theirs.prepare(batch, pool)
            theirs.rotate_and_store(torch.cat((query, query[:, :8]), 1), query[:, :8], None, 0)  # keys of the step, for whole prompts
            other = milliseconds(*[lambda i=i: theirs.attend(query, i, 128**-0.5, None, None) for i in range(layers)]) * 1e3
            name += f" (flashinfer: {other:.0f})"
        print(f"{name:32} {time:8.1f} {floor:8.1f} {floor / time:6.0%}   {work / time / 1e6:.0f} TFLOP/s", flush=True)


def flash(query: torch.Tensor, lens: list[int]) -> float:
    """PyTorch's own flash attention over contiguous keys, microseconds."""
    key = torch.randn(len(query), 8, 128, device=DEVICE, dtype=torch.bfloat16)
    starts = torch.tensor([0, *np.cumsum(lens)], dtype=torch.int32, device=DEVICE)
    run = lambda: torch.ops.aten._flash_attention_forward(
        query, key, key, starts, starts, max(lens), max(lens), 0.0, True, False, scale=0.1
    )
    return milliseconds(*[run] * 4) * 1e3


def elementwise(bandwidth: float) -> None:
    print("elementwise, microseconds: ours, torch, floor")
    for tokens in (1, 64, 8192):
        hidden, delta = (torch.randn(tokens, HIDDEN, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        weight = torch.ones(HIDDEN, device=DEVICE, dtype=torch.bfloat16)
        gate_up = torch.randn(tokens, 2 * INNER, device=DEVICE, dtype=torch.bfloat16)
        heads = torch.randn(tokens, 48, 128, device=DEVICE, dtype=torch.bfloat16)
        angles = torch.randn(tokens, 64, device=DEVICE)
        slots, pool = (
            torch.arange(tokens, device=DEVICE),
            [torch.empty(8192, 8, 128, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)],
        )
        logits = torch.randn(min(tokens, 512), VOCAB, device=DEVICE)
        pairs = {
            "norm": (lambda: add_rms_norm(hidden, delta, weight, 1e-5), lambda: F.rms_norm(hidden.add_(delta), (HIDDEN,), weight, 1e-5), 8 * hidden.nbytes // 2),
            "act": (lambda: gated_activation(gate_up, "silu"), lambda: F.silu(gate_up[:, :INNER]).mul_(gate_up[:, INNER:]), gate_up.nbytes * 3 // 2),
            "rope": (lambda: rotate_and_store(heads[:, :40], heads[:, 40:], (angles, angles), slots, *pool), lambda: heads.clone(), 2 * heads.nbytes),
            "argmax": (lambda: greedy_tokens(logits), lambda: logits.argmax(-1), logits.nbytes),
        }  # fmt: skip
        for name, (ours, theirs, num_bytes) in pairs.items():
            times = [milliseconds(*[run] * 4) * 1e3 for run in (ours, theirs)]
            print(f"{tokens:5} {name:7} {times[0]:8.1f} {times[1]:8.1f} {num_bytes / bandwidth * 1e6:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", nargs="+", default=["linear", "attention", "elementwise"])
    parts = parser.parse_args().part
    print(torch.cuda.get_device_name(DEVICE), torch.__version__)
    with torch.inference_mode():
        bandwidth, rate = ceilings()
        torch.cuda.empty_cache()
        if "attention" in parts:
            attention(bandwidth, rate)
        if "elementwise" in parts:
            elementwise(bandwidth)
        if "linear" in parts:
            linear(bandwidth)


if __name__ == "__main__":
    main()
