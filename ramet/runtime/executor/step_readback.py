"""The way back from the device: one step's tokens and log-probabilities, copied without making anybody wait who does not ask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ramet.runtime.executor.logprobs import LogprobTensors, readable
from ramet.runtime.executor.prompt_pieces import without_context
from ramet.runtime.plan import BatchPlan, RowResult, StepResult
from ramet.runtime.request import LogprobParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Log-probabilities of consecutive tokens of plan row `row`, or (`rows`) of one sampled token of each of several rows."""

    rows: tuple[int, ...]
    params: LogprobParams
    values: LogprobTensors


class HostCopy:
    """Tensors on their way to the host. On a GPU they go to pinned memory behind the work that makes them."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = list(tensors)
        if tensors and tensors[0].is_cuda:
            self._host = [torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> list[torch.Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._host


class StepReadback:
    """What a queued step will bring. `seconds` is called after the copy is complete."""

    def __init__(
        self,
        plan: BatchPlan,
        tokens: torch.Tensor,  # [S], parallel to the sampling rows of the plan
        sampled: Sequence[RowLogprobs],
        prompt: Sequence[RowLogprobs],
        clock: StepClock,
    ) -> None:
        self._plan, self._sampled, self._prompt, self._clock = plan, sampled, prompt, clock
        self._copy = HostCopy([tokens, *(t for part in (*sampled, *prompt) for t in part.values.tensors())])

    def result(self) -> StepResult:
        """Wait for the device and turn tensors into plain data."""
        tokens, *tensors = self._copy.wait()
        sampled = iter(tokens.tolist())
        drawn = [(next(sampled),) if row.samples else () for row in self._plan.rows]
        logprobs: list[tuple[TokenLogprob, ...]] = [()] * len(drawn)
        prompt: list[list[TokenLogprob]] = [without_context(row) for row in self._plan.rows]
        for number, part in enumerate((*self._sampled, *self._prompt)):
            values = readable(tensors[5 * number : 5 * number + 5], part.params)
            if number < len(self._sampled):
                for row, value in zip(part.rows, values, strict=True):
                    logprobs[row] = (value,)
            else:
                prompt[part.rows[0]] += values
        rows = zip(drawn, logprobs, prompt, strict=True)
        return StepResult(tuple(RowResult(d, own, tuple(before)) for d, own, before in rows), self._clock.seconds())


class StepClock:
    """Device time of one step: between start of the forward pass and end of sampling, without what lies idle between the two."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._elapsed = 0.0
        self._began = 0.0

    def start(self) -> None:
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            self._spans.append((begin, end))
        else:
            self._began = time.perf_counter()

    def stop(self) -> None:
        if self._cuda:
            self._spans[-1][1].record()
        else:
            self._elapsed += time.perf_counter() - self._began

    def seconds(self) -> float:
        """Only after the step's copies were waited for."""
        milliseconds = sum(float(begin.elapsed_time(end)) for begin, end in self._spans)
        return self._elapsed + milliseconds / 1000
