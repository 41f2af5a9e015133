"""`ramet generate "prompt"`: stream a continuation from a model that runs in this process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from ramet import log
from ramet.cli.flags import config_of, flag_parser
from ramet.errors import ConfigError
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.runtime.engine.native_format import error_of
from ramet.runtime.request import Generation
from ramet.runtime.sampling_params import parse_sampling_params
from ramet.server.streams import as_generator

DESCRIPTION = "Continue a prompt with a model in this process and stream the text. '-' reads the prompt from stdin."


def run(arguments: Sequence[str]) -> int:
    prompt, raw, sampling, config = parse(arguments)
    log.configure(config.log.log_level)
    return asyncio.run(_generate(config, prompt, raw, sampling))


def parse(arguments: Sequence[str]) -> tuple[str, bool, dict[str, Any], EngineConfig]:
    """Command line → (prompt, raw text instead of a chat turn, native sampling parameters, engine options)."""
    parser = flag_parser(EngineConfig, program="ramet generate", description=DESCRIPTION, arguments=" PROMPT")
    own = parser.add_argument_group("generation")
    own.add_argument("prompt", help="the user's turn, or with --raw the text to continue")
    own.add_argument("--raw", action="store_true", default=False, help="continue the text as it is, without the chat template")
    own.add_argument("--max-new-tokens", type=int, default=256)
    own.add_argument("--temperature", type=float, help="default: the model's own, else 0, always the likeliest token")
    own.add_argument("--top-p", type=float)
    own.add_argument("--regex", help="the output matches this regular expression")
    own.add_argument("--json-schema", help="the output is JSON of this schema")
    own.add_argument("--seed", type=int)
    own.add_argument("--sampling", default="{}", help="further sampling parameters as a JSON object")
    given = vars(parser.parse_known(arguments))
    prompt, raw = given.pop("prompt"), given.pop("raw")
    extra = _json_object(given.pop("sampling"))
    names = ("max_new_tokens", "temperature", "top_p", "regex", "json_schema", "seed")
    sampling = {name: given.pop(name) for name in names if name in given} | extra
    return sys.stdin.read() if prompt == "-" else prompt, raw, sampling, config_of(EngineConfig, {"log_level": "warning"}, given)


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--sampling is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError("--sampling must be a JSON object")
    return found


async def _generate(config: EngineConfig, prompt: str, raw: bool, sampling: dict[str, Any]) -> int:
    engine = await AsyncEngine.start(config)
    try:
        await _stream(engine, _generation(engine, prompt, raw, sampling))
    finally:
        await engine.close()
    return 0


def _generation(engine: GenerationEngine, prompt: str, raw: bool, sampling: dict[str, Any]) -> Generation:
    template = engine.chat_template
    chat = not raw and template is not None
    text = template.render([{"role": "user", "content": prompt}]) if chat and template is not None else prompt
    ids = engine.tokenizer.encode(text, add_special_tokens=not chat)
    params = parse_sampling_params({"temperature": 0.0, **engine.generation_defaults, **sampling})
    return Generation(request_id="generate", input_ids=tuple(ids), sampling=params)


async def _stream(engine: GenerationEngine, generation: Generation) -> None:
    async with aclosing(as_generator(engine.generate(generation))) as deltas:
        async for delta in deltas:
            print(delta.text, end="", flush=True)
            if delta.finish is not None and delta.finish.status >= 400:
                raise error_of(delta.finish)
    print()
