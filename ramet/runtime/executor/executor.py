"""The seam between planning and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, StepResult, TokenMasks


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `size` tensor-parallel executors that run the same plans; they meet in the directory `meeting`. Rank 0 alone is given masks
    and chooses tokens; it sits beside the scheduler."""

    index: int
    size: int
    meeting: str


class PendingResult(Protocol):
    """A step whose sampling has been queued."""

    def result(self) -> StepResult:
        """Wait for the step and return it. Raises what the step raised."""


class Steps(Protocol):
    """Steps run strictly in the order of their `launch`.

    A step has two halves so that grammar masks can be filled while the model runs:

        executor.launch(plan)                   # queue the forward pass; returns at once
        pending = executor.sample(plan, masks)  # queue sampling behind it; returns at once
        result = pending.result()               # wait

    `launch(n+1)` may be called before `sample(n)`'s result is read, but not before `sample(n)` was called. A row that
    starts with PENDING_TOKEN reads the token which its slot sampled last, on the device, without a round trip.
    """

    def launch(self, plan: BatchPlan) -> None: ...

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult: ...


class Executor(Steps, Protocol):
    """Runs batch plans on one model and one KV pool."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def capacity(self) -> Capacity: ...

    def close(self) -> None:
        """Free device memory and threads. Idempotent."""
