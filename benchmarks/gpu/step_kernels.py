"""What whole steps of the executor are made of on a GPU: milliseconds by kernel, and what lies idle between kernels.

    python benchmarks/gpu/step_kernels.py --model-path DIRECTORY_WITH_CONFIG [--steps decode:64x256 decode:512x600 prefill:14x576]

`shared:512x200x16x2048` are 512 rows of 200 own tokens, each 16 of which have 2048 in common before them; `mixed:250x600+14x576` are 250
decode rows and 14 prompts, `mixed:32x700+1x64x500` 32 rows and a piece of 64 tokens behind 500. Steps are queued one ahead of the result that is
read, as the overlapped loop does. Weights are random, keys in the pool whatever was there; rows that decode begin with different tokens, so that experts do not all get the same.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter

import torch
from torch.autograd import DeviceType

from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.torch_executor import TorchExecutor, create_executor
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, PlanRow, RowStart
from ramet.runtime.request import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)


def decode_plans(num_rows: int, context: int, num_steps: int) -> list[BatchPlan]:
    pages = [tuple(range(i * (context + num_steps), (i + 1) * (context + num_steps))) for i in range(num_rows)]
    reset = RowStart(_GREEDY, 0, None, (1,) * context)
    plans = [BatchPlan(0, tuple(PlanRow(str(i), i, (1 + i,), context - 1, 0, pages[i], True, reset) for i in range(num_rows)))]
    for step in range(1, num_steps):
        rows = tuple(PlanRow(str(i), i, (PENDING_TOKEN,), context - 1 + step, len(pages[i]), (), True) for i in range(num_rows))
        plans.append(BatchPlan(step, rows))
    return plans


def shared_plans(num_rows: int, own: int, group: int, prefix: int, num_steps: int) -> list[BatchPlan]:
    base, width = num_rows // group * prefix, own + num_steps
    pages = [
        tuple(range(i // group * prefix, (i // group + 1) * prefix)) + tuple(range(base + i * width, base + (i + 1) * width))
        for i in range(num_rows)
    ]
    reset, first = RowStart(_GREEDY, 0, None, (1,) * (prefix + own)), prefix + own - 1
    plans = [BatchPlan(0, tuple(PlanRow(str(i), i, (1,), first, 0, pages[i], True, reset) for i in range(num_rows)))]
    for step in range(1, num_steps):
        rows = tuple(PlanRow(str(i), i, (PENDING_TOKEN,), first + step, len(pages[i]), (), True) for i in range(num_rows))
        plans.append(BatchPlan(step, rows))
    return plans


def mixed_plans(num_rows: int, context: int, num_prompts: int, length: int, start: int, num_steps: int) -> list[BatchPlan]:
    """Decode rows, and the same pieces of prompts behind them in every step."""
    used, end = num_rows * (context + num_steps), start + length
    reset = RowStart(_GREEDY, 0, None, (1,) * end)
    pages = [tuple(range(used + i * end, used + (i + 1) * end)) for i in range(num_prompts)]
    prompts = [PlanRow(f"prompt {i}", num_rows + i, (1,) * length, start, 0, pages[i], True, reset) for i in range(num_prompts)]
    return [BatchPlan(plan.step, (*plan.rows, *prompts)) for plan in decode_plans(num_rows, context, num_steps)]


def plans_of(step: str) -> list[BatchPlan]:
    kind, size = step.split(":")
    if kind == "mixed":
        rows, prompts = ([int(part) for part in half.split("x")] for half in size.split("+"))
        start = prompts[2] if len(prompts) > 2 else 0
        return mixed_plans(rows[0], rows[1], prompts[0], prompts[1], start, 8)
    numbers = [int(part) for part in size.split("x")]
    if kind == "prefill":
        return prefill_plans(numbers[0], numbers[1], 6)
    return decode_plans(numbers[0], numbers[1], 40) if kind == "decode" else shared_plans(*numbers[:4], 40)


def prefill_plans(num_rows: int, length: int, num_steps: int) -> list[BatchPlan]:
    prompt = tuple(range(1, length + 1))
    reset = RowStart(_GREEDY, 0, None, prompt)
    rows = tuple(PlanRow(str(i), i, prompt, 0, 0, tuple(range(i * length, (i + 1) * length)), True, reset) for i in range(num_rows))
    return [BatchPlan(step, rows) for step in range(num_steps)]


def run(executor: TorchExecutor, plans: list[BatchPlan]) -> float:
    """Seconds per step, with one step queued ahead."""
    begin, before = time.perf_counter(), None
    for plan in plans:
        executor.launch(plan)
        if before is not None:
            before.result()
        before = executor.sample(plan, None)
    assert before is not None
    before.result()
    return (time.perf_counter() - begin) / len(plans)


def report(name: str, executor: TorchExecutor, plans: list[BatchPlan], rows: int = 9) -> None:
    run(executor, plans)
    seconds = run(executor, plans)
    few = plans[:6]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(executor, few)
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type == DeviceType.CUDA]
    by_name: Counter[str] = Counter()
    for event in kernels:
        by_name[event.name[:90]] += event.time_range.elapsed_us()
    busy, reached, last = 0.0, 0.0, ""
    idle_before: Counter[str] = Counter()
    for start, end, kernel in sorted((e.time_range.start, e.time_range.end, e.name) for e in kernels):
        busy += max(0.0, end - max(start, reached))
        if reached and start > reached:
            idle_before[f"{last[:40]} → {kernel[:40]}"] += start - reached
        if end > reached:
            reached, last = end, kernel
    span = reached - min(e.time_range.start for e in kernels)
    print(f"{name}: {seconds * 1e3:.2f} ms a step; device busy {busy / len(few) / 1e3:.2f} of {span / len(few) / 1e3:.2f} ms when traced")
    for kernel, micros in itertools.islice(by_name.most_common(), rows):
        print(f"    {micros / len(few) / 1e3:8.3f} ms  {kernel}", flush=True)
    for pair, micros in itertools.islice(idle_before.most_common(), 4):
        print(f"    {micros / len(few) / 1e3:8.3f} ms idle  {pair}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model-path", required=True)
    parser.add_argument(
        "--steps", nargs="+", default=["decode:1x256", "decode:64x256", "decode:512x600", "prefill:14x576", "prefill:2x4096"]
    )
    args = parser.parse_args()
    options = {"model_path": args.model_path, "load_format": "dummy", "dtype": "bfloat16", "context_length": 8192}
    executor = create_executor(EngineConfig.from_options(options))
    print(torch.cuda.get_device_name(), torch.__version__)
    for step in args.steps:
        report(step, executor, plans_of(step))
    executor.close()


if __name__ == "__main__":
    main()
