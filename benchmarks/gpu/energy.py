"""What a workload costs in joules, and so how fast it could be at best under the chip's power limit: joules / limit.

    python peer_workloads.py --engine ours --ours benchmarks.gpu.energy:make_engine --only W2

Prints a line per call of `generate`, from the counter that the driver keeps (`nvidia-ml-py`; all of the board, in millijoules).
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Sequence

import pynvml

from benchmarks.gpu.peer_factory import PeerEngine


class MeteredEngine(PeerEngine):
    """`PeerEngine`, with a meter at the first GPU."""

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> list[tuple[int, int]]:
        pynvml.nvmlInit()
        board = pynvml.nvmlDeviceGetHandleByIndex(0)
        limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(board) / 1e3
        joules, began = pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1e3, time.perf_counter()
        found = super().generate(prompts, max_tokens)
        seconds = time.perf_counter() - began
        joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1e3 - joules
        row = {
            "requests": len(prompts),
            "tokens_in": sum(map(len, prompts)),
            "tokens_out": sum(max_tokens),
            "seconds": round(seconds, 3),
            "joules": round(joules),
            "watts": round(joules / seconds),
            "limit_watts": limit,
            "seconds_at_the_limit": round(joules / limit, 3),
        }
        print("ENERGY", json.dumps(row), flush=True)
        return found


def make_engine(model_dir: str, args: Namespace) -> MeteredEngine:
    return MeteredEngine(model_dir, with_text=args.w5, extra=json.loads(args.extra))
