"""`ramet bench serving`: drive a running server and report latencies and throughput.

Cache hits are read from the server's counters before and after (Ramet, SGLang, vLLM), or else summed over the replies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from ramet.cli.benchmark.report import append_jsonl, details_of, print_serving, summarize
from ramet.cli.benchmark.targets import Ask, Outcome, Target, send, target_of
from ramet.cli.benchmark.traffic import drive
from ramet.cli.benchmark.workloads import BenchRequest, add_workload_flags, build_workload
from ramet.cli.flags import FlagParser
from ramet.errors import ConfigError, UserError

UNKNOWN_VOCAB_SIZE = 32000
WARMUP_OUTPUT_LEN = 32
COUNTERS = (
    ("ramet:prompt_tokens_total", "ramet:cached_tokens_total"),
    ("sglang:prompt_tokens_total", "sglang:cached_tokens_total"),
    ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"),
)


def run(arguments: Sequence[str]) -> int:
    args = parser().parse_known(list(arguments))
    target = target_of(args.backend)
    outcomes, summary = asyncio.run(bench(args, target))
    print_serving(summary, backend=args.backend, request_rate=args.request_rate, max_concurrency=args.max_concurrency)
    if args.output_file:
        details = details_of(outcomes) if args.output_details else {}
        append_jsonl(Path(args.output_file), {**settings_of(args), **summary, **details})
    for error in list(dict.fromkeys(outcome.error for outcome in outcomes if outcome.error))[:5]:
        print(f"failed: {error}", file=sys.stderr)
    return 0 if summary["failed"] == 0 else 1


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The run's flags for the record: valid JSON, and no secret."""
    rate = args.request_rate if math.isfinite(args.request_rate) else "inf"
    return {name: value for name, value in vars(args).items() if name != "api_key"} | {"request_rate": rate}


def parser() -> FlagParser:
    made = FlagParser(prog="ramet bench serving", description="Load a running server and measure it.")
    where = made.add_argument_group("server")
    where.add_argument("--backend", default="ramet", help="ramet, sglang, vllm, openai, or one of these with -chat or -oai-chat")
    where.add_argument("--base-url", "--endpoint", help="instead of host and port")
    where.add_argument("--host", default="127.0.0.1", help="server address")
    where.add_argument("--port", type=int, default=30000, help="server port")
    where.add_argument("--api-key", help="sent as bearer token")
    where.add_argument("--model", help="name for the OpenAI routes; default: the first of /v1/models")
    where.add_argument("--vocab-size", type=int, help="synthetic prompts draw ids below it; default: asked of the server")
    where.add_argument("--ready-check-timeout-sec", type=float, default=60.0, help="how long to wait for the server")
    add_workload_flags(made)
    load = made.add_argument_group("load")
    load.add_argument("--request-rate", type=float, default=math.inf, help="requests per second, Poisson; inf: all at once")
    load.add_argument("--max-concurrency", type=int, help="requests under way at once")
    load.add_argument("--warmup-requests", type=int, default=1, help="requests before the clock starts")
    load.add_argument("--flush-cache", action="store_true", help="empty the server's prefix cache before the clock starts")
    load.add_argument("--disable-stream", action="store_true", help="ask for whole replies")
    load.add_argument("--disable-ignore-eos", action="store_true", help="let the model end by itself")
    load.add_argument("--extra-request-body", type=json.loads, default={}, help="JSON object merged into every request")
    out = made.add_argument_group("output")
    out.add_argument("--output-file", help="append one JSON line per run")
    out.add_argument("--output-details", action="store_true", help="with the numbers of every request")
    out.add_argument("--tag", help="written into the JSON line")
    out.add_argument("--disable-tqdm", action="store_true", help="no progress line")
    return made


async def bench(args: argparse.Namespace, target: Target) -> tuple[list[Outcome], dict[str, Any]]:
    """Prepare (wait, warm up, flush), run, and summarise."""
    base_url = args.base_url or f"http://{args.host}:{args.port}"
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"--base-url {base_url} is no address of a server: write http://HOST:PORT")
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=None, limits=limits) as client:
        await wait_ready(client, args.ready_check_timeout_sec)
        ask = Ask(args.model or await _model_of(client), not args.disable_stream, not args.disable_ignore_eos, args.extra_request_body)
        requests = build_workload(args, args.vocab_size or await _vocab_size_of(client))
        if not target.takes_ids:
            requests = [await _as_text(client, request, ask.model) for request in requests]
        await _warm_up(client, target, requests, ask, args.warmup_requests)
        if args.flush_cache:
            await _flush(client)
        before = await cache_counters(client)
        progress = Progress(len(requests), quiet=args.disable_tqdm or not sys.stderr.isatty())
        started = time.perf_counter()
        outcomes = await drive(
            requests,
            lambda request: send(client, target, request, ask),
            request_rate=args.request_rate,
            max_concurrency=args.max_concurrency,
            seed=args.seed,
            progress=progress.step,
        )
        summary = summarize(outcomes, time.perf_counter() - started)
        return outcomes, summary | hits_between(before, await cache_counters(client))


@dataclass(slots=True)
class Progress:
    """One rewritten line on stderr."""

    total: int
    quiet: bool
    done: int = 0

    def step(self) -> None:
        self.done += 1
        if not self.quiet:
            print(f"\r{self.done}/{self.total}", end="" if self.done < self.total else "\n", file=sys.stderr, flush=True)


async def wait_ready(client: httpx.AsyncClient, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    reason = ""
    while time.monotonic() < deadline or not reason:
        try:
            response = await client.get("/v1/models", timeout=5)
            if response.status_code == 200:
                return
            reason = f"HTTP {response.status_code}"
            if response.status_code in (401, 403):
                raise UserError(f"{client.base_url} refuses the API key; give --api-key")
        except httpx.HTTPError as error:
            if not reason:
                print(f"no server at {client.base_url} yet; waiting up to {seconds:g} s for one", file=sys.stderr)
            reason = str(error) or type(error).__name__
        await asyncio.sleep(0.2)
    raise UserError(f"no server at {client.base_url} within {seconds:g} s ({reason}); start one with: ramet serve")


async def _model_of(client: httpx.AsyncClient) -> str:
    return str((await client.get("/v1/models")).json()["data"][0]["id"])


async def _vocab_size_of(client: httpx.AsyncClient) -> int:
    """Ramet tells; for others a size that real vocabularies exceed, unless --vocab-size is given."""
    response = await client.get("/server_info")
    if response.status_code == 200:
        return int(response.json().get("vocab_size") or UNKNOWN_VOCAB_SIZE)
    return UNKNOWN_VOCAB_SIZE


async def _as_text(client: httpx.AsyncClient, request: BenchRequest, model: str) -> BenchRequest:
    """Chat routes take no token ids: the server itself turns them into text."""
    if isinstance(request.prompt, str):
        return request
    response = await client.post("/detokenize", json={"tokens": list(request.prompt), "model": model})
    if response.status_code != 200:
        raise ConfigError("chat needs text prompts, and this server has no /detokenize; use --dataset-name custom, or a non-chat backend")
    reply = response.json()
    return replace(request, prompt=reply.get("text") or reply.get("prompt"))


async def _warm_up(client: httpx.AsyncClient, target: Target, requests: Sequence[BenchRequest], ask: Ask, count: int) -> None:
    """Compile and allocate before the clock starts; the first failure says what is wrong with the whole run."""
    if not requests or count <= 0:
        return
    short = replace(requests[0], output_len=min(requests[0].output_len, WARMUP_OUTPUT_LEN))
    for outcome in await asyncio.gather(*(send(client, target, short, ask) for _ in range(count))):
        if outcome.error:
            raise UserError(f"the warm-up request failed, so no load was sent: {outcome.error}")


async def _flush(client: httpx.AsyncClient) -> None:
    response = await client.post("/flush_cache")
    if response.status_code == 404:
        response = await client.post("/reset_prefix_cache")
    if response.status_code != 200:
        raise UserError(f"--flush-cache: the server answered {response.status_code}: {response.text[:200]}")


async def cache_counters(client: httpx.AsyncClient) -> tuple[float, float] | None:
    """(prompt tokens, cached tokens) so far, from the server's metrics; None where it has none."""
    response = await client.get("/metrics", follow_redirects=True)
    if response.status_code != 200:
        return None
    for prompt_name, cached_name in COUNTERS:
        prompt, cached = _metric(response.text, prompt_name), _metric(response.text, cached_name)
        if prompt is not None and cached is not None:
            return prompt, cached
    return None


def _metric(text: str, name: str) -> float | None:
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)", text, flags=re.MULTILINE)
    return sum(float(value) for value in values) if values else None


def hits_between(before: tuple[float, float] | None, after: tuple[float, float] | None) -> dict[str, Any]:
    """Replaces the sums over replies by the server's own count of the run."""
    if before is None or after is None or after[0] <= before[0]:
        return {}
    prompt, cached = after[0] - before[0], after[1] - before[1]
    return {"cached_tokens": int(cached), "cache_hit_rate": cached / prompt}
