"""The keywords of `run` and its siblings that are not arguments of the program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ramet.errors import InvalidRequest
from ramet.lang.verbs import LOGPROB_NAMES, SAMPLING_NAMES

Mode = Literal["auto", "interpreted", "compiled"]
MODES = ("auto", "interpreted", "compiled")

# run() says max_new_tokens where gen() says max_tokens (SGLang's names); both are understood here.
_SAMPLING = {**SAMPLING_NAMES, "max_new_tokens": "max_new_tokens", "min_new_tokens": "min_new_tokens"}
_CONTROL = ("stream", "backend", "timeout", "mode", "use_thread")
RUN_KEYWORDS = frozenset({*_SAMPLING, *LOGPROB_NAMES, *_CONTROL})


@dataclass(frozen=True, slots=True)
class RunOptions:
    """`sampling` and `logprobs` are defaults for every gen of the run, with the server's names. `timeout` is seconds for the whole
    run. `backend`: else the default backend. `use_thread` is SGLang's and means nothing here: no program has a thread."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Mapping[str, Any] = field(default_factory=dict)
    backend: Any = None
    timeout: float | None = None
    mode: Mode | None = None
    stream: bool = False
    concurrency: int | None = None  # set by a batch whose runs take turns on the server
    traced: bool = False  # keep the spans, for explain(analyze=True)


def split_options(keywords: Mapping[str, Any]) -> tuple[RunOptions, dict[str, Any]]:
    """Tell run options from the program's own arguments."""
    given = {name: value for name, value in keywords.items() if value is not None}
    timeout, mode = given.get("timeout"), given.get("mode")
    if timeout is not None and timeout <= 0:
        raise InvalidRequest(f"timeout is seconds and must be above 0, got {timeout}", param="timeout")
    options = RunOptions(
        sampling={server: given[name] for name, server in _SAMPLING.items() if name in given},
        logprobs={name: given[name] for name in LOGPROB_NAMES if name in given},
        backend=given.get("backend"),
        timeout=timeout,
        mode=None if mode is None else check_mode(mode),
        stream=bool(given.get("stream", False)),
    )
    return options, {name: value for name, value in keywords.items() if name not in RUN_KEYWORDS}


def check_mode(mode: str) -> Mode:
    if mode not in MODES:
        raise InvalidRequest(f"mode is auto, interpreted or compiled, not {mode!r}", param="mode")
    return mode  # type: ignore[return-value]
