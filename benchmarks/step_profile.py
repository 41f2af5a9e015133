"""Where a step's time goes on CPU: whole steps through the executor's own step runner, against the model's linear layers alone.

    python benchmarks/step_profile.py [--model-path M] [--context 256] [--rounds 7] [--profile decode:8]

Each line alternates the two measurements and prints medians, so that a noisy machine troubles both alike. `linear` is the floor of
any engine on the same matrix library: every weight matrix of the model once, nothing else. `--profile` prints torch's operator table
of one kind of step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.config import ModelConfig
from ramet.runtime.executor.computation import eager_forward
from ramet.runtime.executor.kv_pool import allocate_pool
from ramet.runtime.executor.step_runner import StepRunner
from ramet.runtime.executor.weights import LoadedModel, load_model
from ramet.runtime.model_files import locate_model
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, Capacity, PlanRow, RowStart
from ramet.runtime.request import SamplingParams

CPU = torch.device("cpu")


@dataclass
class Bench:
    """Rows of `context` tokens in slots 0, 1, …; their pages alternate like those of requests that decode together."""

    loaded: LoadedModel
    runner: StepRunner
    context: int
    sampling: SamplingParams

    def decode(self, num_rows: int) -> Callable[[], None]:
        """One decode step of `num_rows` rows. Repeating it at one position costs the same as going on."""
        start = tuple(self._row(slot, num_rows, tuple(range(1, self.context + 1))) for slot in range(num_rows))
        for row in start:
            self._step(row)
        rows = tuple(PlanRow(row.request_id, row.slot, (PENDING_TOKEN,), self.context - 1, 0, (), True) for row in start)
        return lambda: self._step(*rows)

    def prefill(self, num_tokens: int) -> Callable[[], None]:
        row = self._row(0, 1, tuple(range(1, num_tokens + 1)))
        return lambda: self._step(row)

    def _row(self, slot: int, num_rows: int, tokens: tuple[int, ...]) -> PlanRow:
        pages = tuple(i * num_rows + slot for i in range(len(tokens)))
        return PlanRow(f"r{slot}", slot, tokens, 0, 0, pages, True, RowStart(self.sampling, slot, None, tokens))

    def _step(self, *rows: PlanRow) -> None:
        plan = BatchPlan(0, rows)
        with torch.inference_mode():
            self.runner.forward(plan)
            self.runner.sample(plan, None).result()


def linear_layers(loaded: LoadedModel, num_tokens: int, num_logits: int) -> Callable[[], None]:
    """Every matrix product of a step, on inputs of the right shape."""
    weights = [p for name, p in loaded.model.named_parameters() if p.dim() == 2 and "embed" not in name]
    head = loaded.model.embed.weight if loaded.model.head is None else loaded.model.head.weight
    inputs = {width: torch.randn(num_tokens, width) for width in {w.shape[1] for w in (*weights, head)}}

    def run() -> None:
        with torch.inference_mode():
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)
            F.linear(inputs[head.shape[1]][:num_logits], head)

    return run


def medians(rounds: int, *runs: Callable[[], None]) -> list[float]:
    """Median seconds of each, measured in turns."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, seen in zip(runs, times, strict=True):
            begin = time.perf_counter()
            run()
            seen.append(time.perf_counter() - begin)
    return [statistics.median(seen) for seen in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model-path")
    parser.add_argument("--context", type=int, default=256, help="tokens in each row's cache")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", help="decode:ROWS or prefill:TOKENS")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = load(args.model_path, args.context, SamplingParams(temperature=args.temperature, top_p=args.top_p))
    if args.profile:
        kind, size = args.profile.split(":")
        print_profile(bench.decode(int(size)) if kind == "decode" else bench.prefill(int(size)))
        return
    print(f"{bench.loaded.info.name}, context {args.context}, {args.threads} threads, torch {torch.__version__}")
    print(f"{'step':>14} {'tok/s':>8} {'ms':>8} {'linear ms':>10} {'share of linear':>16}")
    for kind, size in (("prefill", 512), ("decode", 1), ("decode", 8), ("decode", 32)):
        step = bench.decode(size) if kind == "decode" else bench.prefill(size)
        whole, linear = medians(args.rounds, step, linear_layers(bench.loaded, size, size if kind == "decode" else 1))
        print(f"{kind + ' ' + str(size):>14} {size / whole:8.1f} {whole * 1e3:8.1f} {linear * 1e3:10.1f} {linear / whole:16.0%}")


def load(model_path: str | None, context: int, sampling: SamplingParams) -> Bench:
    loaded = load_model(ModelConfig(), device=CPU, dtype=torch.float32, files=locate_model(model_path))
    num_tokens = max(32 * context, 2048)
    pool = allocate_pool(loaded.info, num_pages=num_tokens, page_size=1, dtype=torch.float32, device=CPU)
    runner = StepRunner(eager_forward(loaded, TorchAttention(), pool), loaded.info, Capacity(num_tokens, 1, 32), CPU)
    return Bench(loaded, runner, context, sampling)


def print_profile(step: Callable[[], None]) -> None:
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            step()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))


if __name__ == "__main__":
    main()
