"""Which blocks of `skinny_linear` are fastest for 2 to 16 tokens, for every product of an 8B model.

    python benchmarks/gpu/few_tokens.py            # two minutes; kernels are compiled by eight processes first

Microseconds, medians of CUDA graph replays that rotate through more weights than the L2 cache holds; the floor is the weights' bytes at the
bandwidth of a copy, measured in the same run. The last line adds up 32 layers and the head, by today's blocks and by the best of each.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys

import torch

from benchmarks.gpu.kernel_bench import DEVICE, SHAPES, ceilings, milliseconds
from ramet.runtime.kernels.gpu.skinny_linear import Blocks, default_blocks, skinny_linear

TOKENS = (2, 4, 8, 16)
COMPILERS = 8
SHARED_BYTES = 224 << 10
LAYERS = 32


def candidates() -> list[Blocks]:
    """What fits into a processor's memory, keeps 36 kB or more on their way there, and gives each thread 8 to 32 loads of 16 bytes a turn."""
    shapes = itertools.product((16, 32, 64), (128, 256, 512), (2, 4, 8), (3, 4, 6))
    return [Blocks(*shape) for shape in shapes if _is_sound(*shape)]


def _is_sound(rows: int, depth: int, warps: int, stages: int) -> bool:
    turn = (rows + 16) * depth * 2
    return turn * (stages - 1) >= 36 << 10 and turn * stages <= SHARED_BYTES and 8 <= rows * depth // (256 * warps) <= 32


def compile_part(number: int) -> None:
    """Every so-manieth kernel, into Triton's cache."""
    for depth in sorted({depth for _, depth in SHAPES.values()}):
        for blocks in candidates()[number::COMPILERS]:
            _try(
                torch.ones(2, depth, device=DEVICE, dtype=torch.bfloat16),
                torch.ones(256, depth, device=DEVICE, dtype=torch.bfloat16),
                blocks,
            )
    torch.cuda.synchronize()


def _try(x: torch.Tensor, weight: torch.Tensor, blocks: Blocks) -> bool:
    try:
        skinny_linear(x, weight, blocks=blocks)
    except Exception as error:  # whatever Triton says of blocks that do not fit
        print(f"{blocks}: {type(error).__name__}", file=sys.stderr)
        return False
    return True


def measure() -> None:
    bandwidth, _ = ceilings()
    torch.cuda.empty_cache()
    sums = {tokens: [0.0, 0.0, 0.0] for tokens in TOKENS}  # floor, today's, the best's
    for name, (rows, depth) in SHAPES.items():
        weights = [
            torch.randn(rows, depth, device=DEVICE, dtype=torch.bfloat16) / 64 for _ in range(max(2, int(300e6 // (rows * depth * 2))))
        ]
        floor = rows * depth * 2 / bandwidth * 1e6
        for tokens in TOKENS:
            x = torch.randn(tokens, depth, device=DEVICE, dtype=torch.bfloat16)
            today = default_blocks(tokens, rows, depth, SHARED_BYTES)
            tried = [blocks for blocks in {today, *candidates()} if _try(x, weights[0], blocks)]
            times = {
                blocks: 1e3 * milliseconds(*[lambda w=w, b=blocks: skinny_linear(x, w, blocks=b) for w in weights]) for blocks in tried
            }
            best = sorted(times.items(), key=lambda pair: pair[1])[:6]
            text = "; ".join(f"{time:.1f} n{b.rows} k{b.depth} w{b.warps} s{b.stages}" for b, time in best)
            print(f"{name:8} T={tokens:<3} floor {floor:6.1f} today {times[today]:6.1f} | {text}", flush=True)
            weight = 1 if name == "head" else LAYERS
            for i, time in enumerate((floor, times[today], best[0][1])):
                sums[tokens][i] += weight * time
    for tokens, (floor, today_sum, best_sum) in sums.items():
        print(
            f"all of the model, T={tokens}: floor {floor:.0f}, today {today_sum:.0f} ({floor / today_sum:.1%}), best {best_sum:.0f} ({floor / best_sum:.1%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-part", type=int, help=argparse.SUPPRESS)
    part = parser.parse_args().compile_part
    with torch.inference_mode():
        if part is not None:
            compile_part(part)
            return
        command = [sys.executable, __file__, "--compile-part"]
        for process in [subprocess.Popen([*command, str(i)], stderr=subprocess.DEVNULL) for i in range(COMPILERS)]:
            process.wait()
        measure()


if __name__ == "__main__":
    main()
