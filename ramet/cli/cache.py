"""`ramet cache`: what a server's prefix cache holds, where prompts part, and why a request missed."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ramet.lang.backends.http_client import HttpClient
from ramet.runtime.engine.tree_picture import tree_picture


def run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    path = f"/cache/explain?rid={quote(options.explain)}" if options.explain else f"/cache?nodes={options.nodes}"
    found = asyncio.run(_fetch(options.endpoint, options.api_key, path))
    if options.svg:
        Path(options.svg).write_text(tree_picture(found), encoding="utf-8")
    elif options.json:
        print(json.dumps(found, indent=2))
    else:
        sys.stdout.writelines(f"{line}\n" for line in (_explained(found) if options.explain else _overview(found)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ramet cache", description="Show a server's prefix cache, or why a request missed it.")
    parser.add_argument("--explain", metavar="RID", help="why the prompt of this request was not cached, and what to change")
    parser.add_argument("--nodes", type=int, default=40, help="parts of the tree to show, the largest first (default: %(default)s)")
    parser.add_argument("--svg", metavar="FILE", help="write a picture of the tree instead")
    parser.add_argument("--json", action="store_true", help="the data instead of text")
    parser.add_argument("--endpoint", default="http://localhost:30000", help="the server (default: %(default)s)")
    parser.add_argument("--api-key", help="its API key")
    return parser


async def _fetch(url: str, api_key: str | None, path: str) -> dict[str, Any]:
    client = HttpClient(url.rstrip("/"), {"Authorization": f"Bearer {api_key}"} if api_key else {})
    try:
        found: dict[str, Any] = await client.get(path)
        return found
    finally:
        await client.close()


def _overview(report: Mapping[str, Any]) -> Iterator[str]:
    pool, best = report["pool"], report["optimality"]
    yield (
        f"pool      {pool['total_tokens']} tokens: {pool['used_tokens']} in use, {pool['cached_tokens']} in the tree, "
        f"{pool['pinned_tokens']} pinned; evicted so far {pool['evicted']} ({pool['evicted_pinned']} of them pinned)"
    )
    if report["tier"] is not None:
        yield from _tier(report["tier"])
    found, possible = _percent(best["hit_rate"]), _percent(best["best_hit_rate"])
    yield f"prompts   {best['prompt_tokens']} tokens, {found} found; the best possible is {possible}"
    ratio, edges = best["computed_over_edges"] or 0.0, best["edge_tokens"]
    yield f"computed  {best['computed_tokens']} tokens, {ratio:.3f} × the {edges} of the tree of all prompts"
    yield f"\ntree ({len(report['nodes'])} largest of {report['num_nodes']} edges)"
    yield f"  {'tokens':>8} {'below':>8} {'uses':>6} {'idle s':>7} {'pins':>4}"
    yield from _tree(report["nodes"])
    yield "\nwhere prompts part and the same text follows"
    places = [place for place in report["divergences"] if place["same_text_follows"]]
    for place in places:
        yield f"  {place['count']} × {place['advice']}"
        yield f"      …{place['before'][-40:]!r} then {place['yours'][:32]!r} or {place['nearest'][:32]!r}"
    if not places:
        yield "  nowhere: no template of yours wastes the cache"


def _tier(tier: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"tier      {tier['host_tokens']} of {tier['host_total_tokens']} tokens in host memory, {tier['disk_tokens']} in files "
        f"({tier['disk_bytes'] / 1e9:.2f} GB); saved {tier['saved']}, brought back {tier['loaded']} ({tier['loaded_from_disk']} from files)"
    )
    yield (
        f"          lost {tier['host_evicted']} from memory, {tier['disk_evicted']} from files; {tier['bad_files']} bad files; "
        f"{tier['cheaper_computed']} were cheaper to compute: {tier['prompt_tokens_per_second']:.0f} prompt tokens/s against "
        f"{tier['host_bytes_per_second'] / 1e9:.2f} GB/s of memory and {tier['disk_bytes_per_second'] / 1e9:.2f} of files"
    )


def _tree(nodes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    children: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        children.setdefault(node["parent"], []).append(index)
    stack = [(index, 0) for index in reversed(children.get(-1, []))]
    while stack:
        index, depth = stack.pop()
        node = nodes[index]
        mark = "*" if node["in_use"] else "x" if node["is_dead"] else " "
        text = " ".join(node["text"].split())[:60]
        counts = f"{node['num_tokens']:>8} {node['subtree_tokens']:>8} {node['hits']:>6}"
        yield f"{mark} {counts} {node['idle_seconds']:>7.1f} {node['num_pins']:>4}  {'  ' * depth}{text!r}"
        stack += [(child, depth + 1) for child in reversed(children.get(index, []))]


def _explained(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{found['prompt_tokens']} prompt tokens: {found['cached_tokens']} cached{_loaded(found)}, {found['computed_tokens']} computed "
        f"({found['possible_tokens']} could have been cached)"
    )
    if "yours" in found:
        yield f"  …{found['before']!r}"
        yield f"  yours    {found['yours']!r}"
        yield f"  nearest  {found['nearest']!r}"
    yield found["advice"]


def _loaded(found: Mapping[str, Any]) -> str:
    return f" ({found['loaded_tokens']} of them brought back by the second tier)" if found["loaded_tokens"] else ""


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
