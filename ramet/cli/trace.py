"""`ramet trace RUN_ID`: the waterfall of a program run on a server."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ramet.lang.backends.runtime_endpoint import RuntimeEndpoint
from ramet.lang.waterfall import waterfall


def run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    trace = asyncio.run(_fetch(options.endpoint, options.api_key, options.run_id))
    text = json.dumps(trace, indent=2) + "\n" if options.json else waterfall(trace["spans"], trace["sources"])
    if options.output is None:
        sys.stdout.write(text)
    else:
        Path(options.output).write_text(text, encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ramet trace", description="Draw what a program run on a server spent its time on.")
    parser.add_argument("run_id", help="the id of a live or ended run (ProgramState.run_id, or its `started` event)")
    parser.add_argument("--endpoint", default="http://localhost:30000", help="the server (default: %(default)s)")
    parser.add_argument("--api-key", help="its API key")
    parser.add_argument("--output", "-o", help="a file for the SVG (default: standard output)")
    parser.add_argument("--json", action="store_true", help="the trace's data instead of a picture")
    return parser


async def _fetch(url: str, api_key: str | None, run_id: str) -> dict[str, Any]:
    endpoint = RuntimeEndpoint(url, api_key)
    try:
        return await endpoint.programs.trace(run_id)
    finally:
        await endpoint.close()
