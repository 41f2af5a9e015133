"""Whether the power limit leaves anything to gain by doing two things at once: products of prompts, products of decode rows and reading keys, each
alone and as two streams side by side, with power and clock beside the times.

    python benchmarks/gpu/power_cap.py

The 8B shape: a prefill step of 8,192 tokens and a decode step of 400 rows behind 900 keys each, as bare products and reads in CUDA graphs.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import threading
import time

import torch
import triton
import triton.language as tl

HIDDEN, INNER, QKV, LAYERS = 4096, 14336, 6144, 32
PROMPT_TOKENS, ROWS, KEYS = 8192, 400, 900
READERS, BLOCK = 1056, 4096
QUERY = "power.draw.instant,clocks.sm,clocks_event_reasons.sw_power_cap"
DEVICE = torch.device("cuda")


@triton.jit
def _read(x, sums, size, BLOCK: tl.constexpr):
    program, total = tl.program_id(0), tl.zeros((BLOCK,), tl.float32)
    for start in range(program * BLOCK, size, tl.num_programs(0) * BLOCK):
        total += tl.load(x + start + tl.arange(0, BLOCK)).to(tl.float32)
    tl.store(sums + program, tl.sum(total))


class Layers:
    """Weights of four layers and keys of eight, used in turn: more than any cache holds."""

    def __init__(self) -> None:
        shapes = ((QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER))
        self.weights = [[_uniform(*shape) for shape in shapes] for _ in range(4)]
        self.keys = torch.empty(8, ROWS * KEYS * 2 * 1024, device=DEVICE, dtype=torch.bfloat16).normal_()
        self.sums = torch.zeros(READERS, device=DEVICE)

    def multiply(self, x: torch.Tensor, layer: int) -> None:
        qkv, out, gate_up, down = self.weights[layer % 4]
        torch.mm(torch.mm(x, qkv.t())[:, :HIDDEN], out.t())
        gate, up = torch.mm(x, gate_up.t()).chunk(2, 1)
        torch.mm(gate * up, down.t())

    def read(self, layer: int) -> None:
        keys = self.keys[layer % 8]
        _read[(READERS,)](keys, self.sums, len(keys), BLOCK=BLOCK, num_warps=4)


def _uniform(*shape: int) -> torch.Tensor:
    bound = (3 / shape[1]) ** 0.5
    return torch.empty(*shape, device=DEVICE, dtype=torch.bfloat16).uniform_(-bound, bound)


def recorded(layers: Layers, stream: torch.cuda.Stream, tokens: int, *, reads: bool) -> torch.cuda.CUDAGraph:
    x = torch.randn(tokens, HIDDEN, device=DEVICE, dtype=torch.bfloat16)

    def step() -> None:
        for layer in range(LAYERS):
            if tokens:
                layers.multiply(x, layer)
            if reads:
                layers.read(layer)

    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph


def queued(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, times: int) -> list[torch.cuda.Event]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    with torch.cuda.stream(stream):
        marks[0].record(stream)
        for mark in marks[1:]:
            graph.replay()
            mark.record(stream)
    return marks


def alone(name: str, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, times: int) -> float:
    """Milliseconds of a step when the chip is warm."""
    over, seen = threading.Event(), []

    def watch() -> None:
        while not over.wait(0.25):
            seen.append(subprocess.check_output(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], text=True).strip())

    watcher = threading.Thread(target=watch)
    watcher.start()
    marks = queued(graph, stream, times)
    torch.cuda.synchronize()
    over.set()
    watcher.join()
    steps = [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]
    warm = statistics.median(steps[len(steps) // 2 :])
    print(f"{name}: first {steps[0]:.2f}, later {warm:.2f} ms | {seen[len(seen) // 2]}", flush=True)
    return warm


def main() -> None:
    layers, first, second = Layers(), torch.cuda.Stream(), torch.cuda.Stream(priority=-1)
    prefill, decode = recorded(layers, first, PROMPT_TOKENS, reads=False), recorded(layers, second, ROWS, reads=True)
    alone("products of 400 rows", recorded(layers, second, ROWS, reads=False), second, 250)
    alone("keys of 400 rows", recorded(layers, second, 0, reads=True), second, 250)
    prefill_ms, decode_ms = alone("prefill of 8,192", prefill, first, 16), alone("decode of 400 rows", decode, second, 120)
    time.sleep(1.0)
    long, short = queued(prefill, first, 16), queued(decode, second, 40)
    torch.cuda.synchronize()
    span = max(long[0].elapsed_time(marks[-1]) for marks in (long, short))
    turns = 16 * prefill_ms + 40 * decode_ms
    print(f"one after the other {turns:.0f} ms, side by side {span:.0f} ms: {turns / span:.3f} x")


if __name__ == "__main__":
    main()
