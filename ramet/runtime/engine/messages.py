"""What front and worker say to each other. Plain frozen data; `channel.py` decides how it travels.

    front → worker   Submit · Abort · Hint · Flush · GetStats · LookAtCache · ExplainMiss · Shutdown
    worker → front   Ready · Outputs · Reply · Fault
    rank 0 → others  RunForward · RunSampling · Shutdown       (tensor parallelism; they answer nothing but a Fault)

Request ids on the channel are wire ids: the front makes them unique for its whole life, so that an id which a user
gives twice, one after the other, never mixes two requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramet.runtime.cache_view import CacheView, Lookup
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo
from ramet.runtime.request import EngineStats, KvHint, Request, RequestOutput


@dataclass(frozen=True, slots=True)
class Submit:
    """Requests that arrived together are added together, so that the scheduler sees what they share."""

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """End these requests at the next step; ids that are not running are ignored. `None`: all of them."""

    request_ids: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Hint:
    """What a program run says of its KV. Not answered."""

    hint: KvHint


@dataclass(frozen=True, slots=True)
class Flush:
    """Empty the prefix cache; answered by a `Reply` whose `done` says whether it was idle enough to do so."""

    call_id: int


@dataclass(frozen=True, slots=True)
class GetStats:
    """Answered by a `Reply` with `stats`."""

    call_id: int


@dataclass(frozen=True, slots=True)
class LookAtCache:
    """Answered by a `Reply` with `cache`: the `max_nodes` largest parts of the tree."""

    call_id: int
    max_nodes: int


@dataclass(frozen=True, slots=True)
class ExplainMiss:
    """Answered by a `Reply` with `lookup`, of the last request that its user called so; None when it is unknown."""

    call_id: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Close the executor and end."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The first message of a worker that came up."""

    model: ModelInfo
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class Outputs:
    """All that one step brought to all requests. `stats` comes along about once a second while there is work; such a message may have
    no outputs and then only says that a step was finished (the watchdog listens to it)."""

    outputs: tuple[RequestOutput, ...] = ()
    stats: EngineStats | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    call_id: int
    done: bool = True
    stats: EngineStats | None = None
    cache: CacheView | None = None
    lookup: Lookup | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """The worker cannot go on and ends after this. `error` is the class name in `ramet.errors` where it is one, and `details` the
    traceback where it is none."""

    error: str
    message: str
    param: str | None = None
    details: str = ""


@dataclass(frozen=True, slots=True)
class RunForward:
    """`Executor.launch` of rank 0."""

    plan: BatchPlan


@dataclass(frozen=True, slots=True)
class RunSampling:
    """`Executor.sample` of rank 0, for the plan that came last. Masks stay there: it alone chooses tokens."""


ToWorker = Submit | Abort | Hint | Flush | GetStats | LookAtCache | ExplainMiss | Shutdown
ToFront = Ready | Outputs | Reply | Fault
ToFollower = RunForward | RunSampling | Shutdown
Message = ToWorker | ToFront | ToFollower
