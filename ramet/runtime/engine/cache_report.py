"""The cache in words: why a prompt missed, what its template should change, how near the cache is to the best possible. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ramet.runtime.cache_view import CacheNode, CacheView, Divergence, Lookup, MissReason

Decode = Callable[[Sequence[int]], str]

_AROUND_TOKENS = 24
_CHANGING = (
    ("a timestamp", re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}:\d\d(:\d\d)?|\b1[5-9]\d{8}\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b")),
    ("an identifier", re.compile(r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-|\b(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{12,}\b")),
    ("a number", re.compile(r"\d+")),
)


def explain(lookup: Lookup, decode: Decode) -> dict[str, Any]:
    """`GET /cache/explain`: counts, the reason, the place as text and line, and what to do."""
    before, after = _sides(lookup, decode)
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    what = _what_differs(before, after, decode(lookup.seen[:_AROUND_TOKENS]))
    found = {
        "rid": lookup.request_id,
        "prompt_tokens": lookup.prompt_tokens,
        "cached_tokens": lookup.cached_tokens,
        "loaded_tokens": lookup.loaded_tokens,
        "computed_tokens": lookup.prompt_tokens - lookup.cached_tokens,
        "possible_tokens": lookup.possible_tokens,
        "reason": str(lookup.reason),
        "advice": _advice(lookup, what, line),
    }
    if lookup.reason is MissReason.DIFFERS:
        seen = decode(lookup.seen[:_AROUND_TOKENS])
        found |= {"position": lookup.position, "line": line, "column": column, "before": before[-80:], "yours": after, "nearest": seen}
    return found


def report(view: CacheView, decode: Decode) -> dict[str, Any]:
    """`GET /cache`: the pool, the optimality report, the tree, and where prompts part."""
    names = ("total_tokens", "used_tokens", "pinned_tokens", "cached_tokens", "evicted", "evicted_pinned", "duplicate", "pins_revoked")
    return {
        "pool": {name: getattr(view, name) for name in names},
        "tier": None if view.tier is None else asdict(view.tier),
        "optimality": optimality(view),
        "num_nodes": view.num_nodes,
        "nodes": [_node(node, decode) for node in view.nodes],
        "divergences": [_divergence(each, decode) for each in view.divergences],
    }


def optimality(view: CacheView) -> dict[str, Any]:
    """Prompt tokens computed against Σ|edges|, the least that anybody can compute who remembers everything."""
    best = view.prompt - view.least
    return {
        "prompt_tokens": view.prompt,
        "computed_tokens": view.computed,
        "edge_tokens": view.least,
        "computed_over_edges": _ratio(view.computed, view.least),
        "hit_rate": _ratio(view.hit, view.prompt),
        "best_hit_rate": _ratio(best, view.prompt),
        "share_of_best": _ratio(view.hit, best),
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _sides(lookup: Lookup, decode: Decode) -> tuple[str, str]:
    ids = lookup.prompt_ids
    return decode(ids[: lookup.position]), decode(ids[lookup.position : lookup.position + _AROUND_TOKENS])


def _what_differs(before: str, yours: str, nearest: str) -> str:
    """What kind of text stands at the border: the words that it cuts are looked at whole."""
    head = re.split(r"\s", before[-40:])[-1] if before[-1:].strip() else ""
    mine, other = (head + yours)[:60], (head + nearest)[:60]
    for name, pattern in _CHANGING:
        matches = pattern.search(mine), pattern.search(other)
        if all(match is not None and match.start() <= len(head) + 2 for match in matches):
            return name
    if yours.lstrip()[:12] == nearest.lstrip()[:12]:
        return "white space"
    return "the text"


def _advice(lookup: Lookup, what: str, line: int) -> str:
    match lookup.reason:
        case MissReason.NONE:
            return "everything that can be reused was reused"
        case MissReason.NEW:
            return "this goes on from the longest thing seen before; the rest is new text"
        case MissReason.EMPTY:
            return "nothing was asked in this cache namespace before"
        case MissReason.NAMESPACE:
            return "another cache namespace (extra_key, cache_salt) has this prompt; requests of one namespace share KV"
        case MissReason.EVICTED:
            lost = lookup.possible_tokens - lookup.cached_tokens
            room = "--mem-fraction-static, --max-total-tokens or a second tier, --enable-hierarchical-cache"
            return f"{lost} more tokens were cached once and were evicted; more room: {room}"
        case MissReason.DIFFERS:
            return _advice_on_difference(lookup, what, line)


def _advice_on_difference(lookup: Lookup, what: str, line: int) -> str:
    computed = lookup.prompt_tokens - lookup.cached_tokens
    place = f"your prompts differ at {what} in line {line}, after {lookup.position} tokens; {computed} are computed"
    if what == "the text":
        return f"{place}. If some of them are the same in every prompt, put those first"
    if what == "white space":
        return f"{place}. Write the same white space everywhere"
    return f"{place}. Move it behind everything that stays the same"


def _node(node: CacheNode, decode: Decode) -> dict[str, Any]:
    names = ("parent", "namespace", "num_tokens", "subtree_tokens", "hits", "num_pins", "in_use", "is_dead")
    return {
        **{name: getattr(node, name) for name in names},
        "idle_seconds": round(node.idle_seconds, 3),
        "text": decode(node.head),
    }


def _divergence(place: Divergence, decode: Decode) -> dict[str, Any]:
    explained = explain(place.example, decode)
    names = ("position", "line", "column", "before", "yours", "nearest")
    advice = explained["advice"] if place.again else "prompts part here for good: what follows is different text"
    return {
        "count": place.count,
        "same_text_follows": place.again,
        "computed_tokens": place.computed_tokens,
        **{name: explained.get(name) for name in names},
        "advice": advice,
    }
