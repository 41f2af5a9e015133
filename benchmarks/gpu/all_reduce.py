"""What sums and gathers over the GPUs of one host cost, as a decode step has them: in a CUDA graph, one after the other, in bf16.

python -m benchmarks.gpu.all_reduce 2          # on a machine with two GPUs; microseconds each, measured on rank 0
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

import torch

from ramet.runtime.executor.executor import Rank
from ramet.runtime.executor.process_group import join_ranks

HIDDEN, VOCAB = 4096, 128256  # Llama-3.1-8B
ROWS = (1, 4, 16, 64, 128, 256, 512, 2048, 8192)
IN_A_GRAPH, REPLAYS = 64, 10


def main() -> int:
    if len(sys.argv) == 2:
        return start(int(sys.argv[1]))
    measure(Rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)


def start(size: int) -> int:
    with tempfile.TemporaryDirectory() as meeting:
        command = [sys.executable, "-m", "benchmarks.gpu.all_reduce"]
        ranks = [subprocess.Popen([*command, str(index), str(size), meeting]) for index in range(size)]
        return max(rank.wait() for rank in ranks)


def measure(rank: Rank) -> None:
    device = torch.device("cuda", rank.index)
    torch.cuda.set_device(device)
    ranks = join_ranks(rank, device)
    for rows in ROWS:
        hidden = torch.zeros(rows, HIDDEN, dtype=torch.bfloat16, device=device)
        spent = microseconds(lambda hidden=hidden: ranks.all_reduce(hidden))
        if rank.index == 0:
            print(f"all-reduce of {rows} rows, {hidden.nbytes} bytes: {spent:.1f}")
    for rows in (1, 64, 512):
        logits = torch.zeros(rows, VOCAB // rank.size, device=device)
        whole = torch.empty(rows, VOCAB, device=device)
        parts = ranks.all_gather(logits)
        gather = microseconds(lambda logits=logits: ranks.all_gather(logits))
        order = microseconds(lambda whole=whole, parts=parts: whole.view(rows, rank.size, -1).copy_(parts.transpose(0, 1)))
        if rank.index == 0:
            print(f"logits of {rows} rows: gathered in {gather:.1f}, put in order in {order:.1f}")


def microseconds(operation: Callable[[], object]) -> float:
    """Of one of many in a graph; the median of several replays."""
    with torch.cuda.stream(torch.cuda.Stream()):
        operation()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        for _ in range(IN_A_GRAPH):
            operation()
        graph.capture_end()
        return statistics.median(_replay(graph) for _ in range(REPLAYS)) * 1000 / IN_A_GRAPH


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


if __name__ == "__main__":
    sys.exit(main())
