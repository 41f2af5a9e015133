"""Decode attention with shared prefixes read once, against the same rows each reading their own pages: fork width by prefix length.

    python benchmarks/gpu/shared_prefix_sweep.py [--out sweep.json] [--plot sweep.png]
    python benchmarks/gpu/shared_prefix_sweep.py --from sweep.json --plot sweep.png

64 rows of one layer of the 8B shape, in groups of `width` rows that share a prefix and have 128 tokens of their own. Times are medians of
CUDA graph replays. `floor` is the plain kernel's bytes over the measured bandwidth.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROWS, OWN = 64, 128
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
PREFIXES = (512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Point:
    """Microseconds per layer."""

    width: int
    prefix: int
    plain: float
    shared: float


def measure() -> list[Point]:
    import torch

    from benchmarks.gpu.kernel_bench import DEVICE, batch_of, milliseconds
    from ramet.runtime.attention.attention_backend import KVPool
    from ramet.runtime.attention.triton_backend import TritonAttention

    tokens = ROWS * (PREFIXES[-1] + OWN)
    keys, values = (torch.randn(tokens, 8, 128, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    pool, points = KVPool((keys,), (values,), 1), []
    query = torch.randn(ROWS, 32, 128, device=DEVICE, dtype=torch.bfloat16)
    for prefix in PREFIXES:
        for width in WIDTHS:
            batch = batch_of([1] * ROWS, [prefix + OWN] * ROWS, tokens, prefix if width > 1 else 0, width)
            times, outs = [], []
            for given in (replace(batch, shared_prefixes=()), batch):
                attention = TritonAttention(num_heads=32, num_kv_heads=8, device=DEVICE)
                attention.prepare(given, pool)
                attend = lambda attention=attention: attention.attend(query, 0, 128**-0.5, None, None)
                outs.append(attend().float())
                times.append(milliseconds(*[attend] * 3) * 1e3)
            error = float((outs[0] - outs[1]).norm() / outs[0].norm())
            if not error < 1e-2:
                raise RuntimeError(f"width {width}, prefix {prefix}: the two differ by {error:.1e}")
            points.append(Point(width, prefix, *times))
            print(
                f"width {width:2} prefix {prefix:5}: plain {times[0]:7.1f} us, shared {times[1]:7.1f} us, {times[0] / times[1]:.2f}x",
                flush=True,
            )
    return points


def plot(points: list[Point], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for prefix in sorted({point.prefix for point in points}):
        own = [point for point in points if point.prefix == prefix]
        axes.plot([p.width for p in own], [p.plain / p.shared for p in own], marker="o", label=f"prefix {prefix}")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="rows that share a prefix",
        ylabel="attention, times as fast",
        xticks=WIDTHS,
        yticks=(1, 2, 4, 8, 16, 32),
    )
    axes.set_xticklabels(WIDTHS)
    axes.set_yticklabels((1, 2, 4, 8, 16, 32))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    points = [Point(**line) for line in json.loads(args.source.read_text())] if args.source else measure()
    if args.out:
        args.out.write_text(json.dumps([asdict(point) for point in points]))
    if args.plot:
        plot(points, args.plot)


if __name__ == "__main__":
    main()
