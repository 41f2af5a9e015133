"""Products with 8- and 4-bit weights at the shapes of an 8B model: microseconds, share of the memory's speed, and error against float32.

python -m benchmarks.gpu.quantized_linear [fp8|int8|int4] [--tiles]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from ramet.runtime.kernels.gpu.quantized_linear import Codes, Tiles, dequantise, few_tokens_linear, fp8_linear
from ramet.runtime.kernels.gpu.skinny_linear import skinny_linear
from ramet.runtime.layers.quantized_weight import QuantizedWeight, WeightScheme, quantise

SHAPES = {"qkv": (6144, 4096), "out": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
BATCHES = (1, 4, 16, 32, 64, 128, 256, 512, 4096)
SCHEMES = {"fp8": WeightScheme("fp8"), "int8": WeightScheme("int8", None, torch.float16), "int4": WeightScheme("int4", 128, torch.float16)}
DEVICE = torch.device("cuda", 0)
Call = Callable[[int], object]


def microseconds(call: Call, copies: int) -> float:
    """Of one call in a graph of calls that take turns with `copies` weights, so that none of them is in cache."""
    count = max(2 * copies, 8)
    for i in range(copies):
        call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            call(i % copies)
    graph.replay()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(3):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1000 / (3 * count)


def weights_of(kind: str, shape: tuple[int, int], copies: int) -> tuple[torch.Tensor, list[Codes]]:
    torch.manual_seed(0)
    dense = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) / shape[1] ** 0.5
    weight = QuantizedWeight(*shape, SCHEMES[kind], DEVICE)
    weight.store(0, quantise(dense, SCHEMES[kind]))
    first = Codes(weight.codes.data, weight.scales.data, None if weight.zeros is None else weight.zeros.data, shape[1])
    return weight.dequantise(torch.float32), [first] + [
        Codes(first.codes.clone(), first.scales, first.zeros, shape[1]) for _ in range(copies - 1)
    ]


def ways(x: torch.Tensor, weights: Sequence[Codes], dense: Sequence[torch.Tensor]) -> dict[str, Call]:
    found: dict[str, Call] = {}
    if len(x) <= 16:
        found["bf16"] = lambda i: skinny_linear(x, dense[i])
    else:
        found["bf16"] = lambda i: F.linear(x, dense[i])
    if len(x) <= 128:
        found["tiles"] = lambda i: few_tokens_linear(x, weights[i])
    if weights[0].kind == 0 and len(x) > 1:
        found["fp8"] = lambda i: fp8_linear(x, weights[i])
    if len(x) > 32:
        found["unpack"] = lambda i: F.linear(x, dequantise(weights[i], x.dtype))
    return found


def compare(kind: str) -> None:
    print(f"{kind}: us per call (share of 4.27 TB/s at the weight's bytes; relative error)")
    for name, shape in SHAPES.items():
        copies = max(2, (160 << 20) // (shape[0] * shape[1] // 2))
        exact, weights = weights_of(kind, shape, copies)
        dense = [exact.bfloat16() for _ in range(copies)]
        num_bytes = weights[0].codes.nbytes + weights[0].scales.nbytes
        for num_tokens in BATCHES:
            x = torch.randn(num_tokens, shape[1], device=DEVICE, dtype=torch.bfloat16)
            expected = F.linear(x.float(), exact)
            cells = []
            for way, call in ways(x, weights, dense).items():
                result = call(0)
                assert isinstance(result, torch.Tensor)
                error = float((result.float() - expected).norm() / expected.norm())
                duration = microseconds(call, copies)
                moved = num_bytes if way != "bf16" else 2 * shape[0] * shape[1]
                cells.append(f"{way} {duration:7.1f} ({moved / duration / 4.27e6:4.0%}; {error:.1e})")
            print(f"{name:8} {num_tokens:5} | " + " | ".join(cells), flush=True)


def tune(kind: str, num_tokens: int, candidates: Sequence[Tiles]) -> None:
    for name, shape in SHAPES.items():
        copies = max(2, (160 << 20) // (shape[0] * shape[1] // 2))
        _, weights = weights_of(kind, shape, copies)
        x = torch.randn(num_tokens, shape[1], device=DEVICE, dtype=torch.bfloat16)
        found = []
        for tiles in candidates:
            try:
                duration = microseconds(lambda i, t=tiles: few_tokens_linear(x, weights[i], tiles=t), copies)
            except Exception as error:
                print(f"{tiles}: {type(error).__name__}")
                continue
            found.append((duration, tiles))
        print(
            f"{kind} {name} T={num_tokens}: "
            + ", ".join(f"{d:.1f} {t.rows}/{t.depth}/{t.warps}/{t.stages}" for d, t in sorted(found, key=lambda e: e[0])[:4]),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["fp8", "int4"])
    parser.add_argument("--tune", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    began = time.monotonic()
    for kind in arguments.kinds:
        if arguments.tune:
            one = [Tiles(rows, depth, warps, 1) for rows in (1, 2, 4, 8) for depth in (1024, 2048, 4096) for warps in (2, 4, 8)]
            many = [Tiles(rows, 128, 4, stages, splits) for rows in (64, 128) for stages in (2, 3, 4) for splits in (1, 2, 4)]
            for num_tokens in arguments.tune:
                tune(kind, num_tokens, one if num_tokens == 1 else many)
        else:
            compare(kind)
        print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
