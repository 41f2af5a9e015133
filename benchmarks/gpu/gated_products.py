"""Both products of a gated MLP with their activation, in one kernel and by cuBLAS with a kernel behind it: microseconds by number of tokens.

    python benchmarks/gpu/gated_products.py [--inner 14336 --depth 4096 --tokens 8192 2048 512 256]

`cool`: the first milliseconds. `warm`: after some tenths of a second, when the power limit has lowered the clock. Weights of four layers in
turn, so that none is in the cache; `*` where `gains` chooses the one kernel.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ramet.runtime.kernels.gpu.elementwise import gated_activation
from ramet.runtime.kernels.gpu.gated_product import gains, launch

TOKENS = (8192, 4096, 2048, 1024, 768, 512, 448, 384, 320, 256, 224, 192, 144)
LAYERS, CALLS = 4, 8
WARM_MS = 250


def timed(call: Callable[[int], object]) -> tuple[float, float]:
    """Microseconds of a call, cool and warm."""
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(CALLS):
            call(number % LAYERS)
    time.sleep(0.05)
    cool = min(_milliseconds(graph, 3)) / CALLS
    warm = _milliseconds(graph, max(4, int(WARM_MS / (cool * CALLS))))
    return cool * 1e3, statistics.median(warm[len(warm) // 2 :]) / CALLS * 1e3


def _milliseconds(graph: torch.cuda.CUDAGraph, times: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inner", type=int, default=14336)
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    args = parser.parse_args()
    bound = (3 / args.depth) ** 0.5
    weights = [torch.empty(2 * args.inner, args.depth, device="cuda", dtype=torch.bfloat16).uniform_(-bound, bound) for _ in range(LAYERS)]
    print(f"{torch.cuda.get_device_name()}, inner {args.inner}, depth {args.depth}; µs, cool / warm")
    print("tokens   cuBLAS + activation    tiles of 128       tiles of 112      cuBLAS alone")
    for num_tokens in args.tokens:
        x = torch.randn(num_tokens, args.depth, device="cuda", dtype=torch.bfloat16)
        out = torch.empty(num_tokens, args.inner, device="cuda", dtype=torch.bfloat16)
        chosen = "*" if gains(weights[0], num_tokens, "silu") else " "
        ways: tuple[Callable[[int], object], ...] = (
            lambda i, x=x: gated_activation(F.linear(x, weights[i]), "silu"),
            lambda i, x=x, out=out: launch(x, weights[i], "silu", 128, out),
            lambda i, x=x, out=out: launch(x, weights[i], "silu", 112, out),
            lambda i, x=x: F.linear(x, weights[i]),
        )
        print(f"{num_tokens:6}{chosen}" + "".join("{:9.1f} /{:8.1f}".format(*timed(way)) for way in ways), flush=True)


if __name__ == "__main__":
    main()
