"""A process that warms up with an empty cache of kernels, and says what it compiled when: JSON on stdout. `experts` as its argument: over a
model that has some."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton

from ramet.runtime.executor.gpu_warm_up import warm_up
from ramet.runtime.kernels.gpu.rehearsal import Rehearsal, is_rehearsing
from tests.gpu.test_cuda_graphs import DEVICE, SPEC, WITH_EXPERTS, make_executor


def main() -> None:
    in_calls: list[str] = []
    side_by_side: list[str] = []

    def compiled(*, fn: Any, is_manual_warmup: bool, **_: object) -> None:
        (side_by_side if is_manual_warmup else in_calls).append(fn.name)

    triton.knobs.runtime.jit_post_compile_hook = compiled
    torch.cuda.set_device(DEVICE)
    rehearsal = Rehearsal(DEVICE)
    executor = make_executor(graphs=True, spec=WITH_EXPERTS if "experts" in sys.argv else SPEC)
    warm_up(executor, executor.prepared_sizes, rehearsal)
    executor.close()
    print(json.dumps({"in_calls": in_calls, "side_by_side": side_by_side, "noted": rehearsal.num_noted, "goes_on": is_rehearsing()}))


main()
