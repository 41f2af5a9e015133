"""What the benchmarks without a server share: an engine in this process as something to send requests to."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from ramet.cli.benchmark.targets import Outcome
from ramet.cli.benchmark.workloads import BenchRequest
from ramet.cli.flags import FlagParser, config_of, flag_parser
from ramet.errors import RametError
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.runtime.engine.native_format import error_of
from ramet.runtime.request import Generation, SamplingParams
from ramet.server.streams import as_generator


def parse(arguments: list[str], add_flags: Callable[[FlagParser], list[str]], *, kind: str, description: str) -> tuple[Any, EngineConfig]:
    """The benchmark's own flags (their names are what `add_flags` returns) and the engine's, from one command line."""
    parser = flag_parser(EngineConfig, program=f"ramet bench {kind}", description=description)
    own_names = add_flags(parser)
    given = parser.parse_known(arguments)
    options = {name: value for name, value in vars(given).items() if name not in own_names}
    return given, config_of(EngineConfig, {"log_level": "warning"}, options)


def generation_of(request: BenchRequest, request_id: str) -> Generation:
    is_text = isinstance(request.prompt, str)
    return Generation(
        request_id=request_id,
        text=request.prompt if isinstance(request.prompt, str) else None,
        input_ids=None if is_text else tuple(request.prompt),  # type: ignore[arg-type]
        sampling=SamplingParams(max_new_tokens=request.output_len, temperature=0.0, ignore_eos=True),
    )


async def run_request(engine: GenerationEngine, request: BenchRequest, request_id: str) -> Outcome:
    """One request, with the arrival of every token."""
    outcome = Outcome(started=time.perf_counter())
    try:
        async with aclosing(as_generator(engine.generate(generation_of(request, request_id)))) as deltas:
            async for delta in deltas:
                if delta.token_ids:
                    outcome.add_tokens(len(delta.token_ids))
                outcome.text += delta.text
                outcome.prompt_len, outcome.output_len = delta.prompt_tokens, delta.completion_tokens
                outcome.cached_tokens = delta.cached_tokens
                if delta.finish is not None and delta.finish.status >= 400:
                    raise error_of(delta.finish)
    except RametError as error:
        outcome.error = error.message
    outcome.ended = time.perf_counter()
    return outcome
