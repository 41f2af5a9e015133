"""The radix tree as a picture: each edge a bar, as wide as the tokens at and below it, under the edge that it goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _ROW, _TOP, _LEAST = 1200, 22, 58, 1.5
_COLOURS = {"in use": "#4c78a8", "pinned": "#f58518", "done with": "#d9d9d9", "cached, used often": "#54a24b", "cached": "#b5dba8"}


def tree_picture(report: Mapping[str, Any]) -> str:
    """From what `cache_report.report` returns. Parts that are too thin to see are left out; so is what the report leaves out."""
    nodes = report["nodes"]
    boxes = _boxes(nodes)
    depth = max((row for row, _, _ in boxes.values()), default=0) + 1
    height = _TOP + depth * _ROW + 10
    bars = "".join(_bar(nodes[index], *box) for index, box in boxes.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + 20} {height}" width="{_WIDTH + 20}" height="{height}">'
        "<style>text{font:11px sans-serif;fill:#222}.h{font:bold 13px sans-serif}</style>"
        f'<rect width="{_WIDTH + 20}" height="{height}" fill="#fff"/>{_head(report)}{bars}</svg>\n'
    )


def _boxes(nodes: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, float, float]]:
    """Index → (row, x, width). Parents come before their children, and children fill their parent from the left."""
    total = sum(node["subtree_tokens"] for node in nodes if node["parent"] < 0) or 1
    boxes: dict[int, tuple[int, float, float]] = {}
    filled: dict[int, float] = {-1: 10.0}
    for index, node in enumerate(nodes):
        parent, width = node["parent"], _WIDTH * node["subtree_tokens"] / total
        if width < _LEAST or (parent >= 0 and parent not in boxes):
            continue
        row = boxes[parent][0] + 1 if parent >= 0 else 0
        x = filled[parent]
        filled[parent], filled[index] = x + width, x
        boxes[index] = (row, x, width)
    return boxes


def _bar(node: Mapping[str, Any], row: int, x: float, width: float) -> str:
    y = _TOP + row * _ROW
    text = "".join(c if c.isprintable() else " " for c in node["text"])
    title = escape(
        f"{node['num_tokens']} tokens, {node['subtree_tokens']} with what follows; {node['hits']} uses, idle {node['idle_seconds']:.0f} s, "
        f"{node['num_pins']} pins; {text}"
    )
    label = escape(text[: int(width / 6.5)]) if width > 30 else ""
    return (
        f'<g><title>{title}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 2}" fill="{_COLOURS[_use(node)]}" '
        f'stroke="#fff"/><text x="{x + 3:.1f}" y="{y + 14}">{label}</text></g>'
    )


def _use(node: Mapping[str, Any]) -> str:
    if node["in_use"]:
        return "in use"
    if node["num_pins"]:
        return "pinned"
    return "done with" if node["is_dead"] else "cached, used often" if node["hits"] > 4 else "cached"


def _head(report: Mapping[str, Any]) -> str:
    pool, best = report["pool"], report["optimality"]
    title = f"{pool['cached_tokens']} of {pool['total_tokens']} tokens cached in {report['num_nodes']} edges"
    if best["computed_over_edges"] is not None:
        title += f"; computed {best['computed_over_edges']:.2f} × the edges of all prompts"
    legend = "".join(
        f'<rect x="{10 + 140 * place}" y="32" width="10" height="10" fill="{colour}"/><text x="{24 + 140 * place}" y="41">{name}</text>'
        for place, (name, colour) in enumerate(_COLOURS.items())
    )
    return f'<text class="h" x="10" y="18">{escape(title)}</text>{legend}'
