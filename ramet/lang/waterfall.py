"""A picture of a run: one bar per generation, select, host call and prefetch, over time, beside the line of the user's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_ROW, _LABEL, _CHART, _PAD = 18, 430, 720, 12
_COLOURS = {"gen": "#4c78a8", "select": "#72b7b2", "host_call": "#f58518", "prefetch": "#bab0ac", "pin": "#b279a2", "free": "#9d9d9d"}
_STYLE = "text{font:11px ui-monospace,monospace;fill:#333}.t{fill:#999}"


def waterfall(spans: Sequence[Mapping[str, Any]], sources: Sequence[Sequence[Any]]) -> str:
    """SVG. `spans` as in a trace of the server: kind, location [source, line, col, end_col], start and end in seconds, data; `sources`
    are [file, first line, lines]."""
    ordered = sorted(spans, key=lambda span: (span["start"], span["end"]))
    total = max((span["end"] for span in ordered), default=0.0) or 1.0
    height = _PAD * 2 + _ROW * (len(ordered) + 1)
    width = _LABEL + _CHART + 2 * _PAD
    rows = [_axis(total)] + [_row(span, index, total, sources) for index, span in enumerate(ordered)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", f'<rect width="{width}" height="{height}" fill="#fff"/>', *rows, "</svg>"]) + "\n"


def _axis(total: float) -> str:
    marks = [
        f'<text class="t" x="{_PAD + _LABEL + _CHART * share:.0f}" y="{_PAD + 10}" text-anchor="middle">{_time(total * share)}</text>'
        f'<line x1="{_PAD + _LABEL + _CHART * share:.0f}" x2="{_PAD + _LABEL + _CHART * share:.0f}" y1="{_PAD + 14}" y2="100%"'
        ' stroke="#eee"/>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return "\n".join(marks)


def _row(span: Mapping[str, Any], index: int, total: float, sources: Sequence[Sequence[Any]]) -> str:
    top = _PAD + _ROW * (index + 1)
    left = _PAD + _LABEL + _CHART * span["start"] / total
    length = max(1.5, _CHART * (span["end"] - span["start"]) / total)
    label, detail = escape(_label(span, sources)), escape(_detail(span))
    colour = _COLOURS.get(str(span["kind"]), "#888")
    return (
        f'<text x="{_PAD}" y="{top + 12}">{label}</text>'
        f'<rect x="{left:.1f}" y="{top + 2}" width="{length:.1f}" height="{_ROW - 5}" rx="2" fill="{colour}">'
        f"<title>{label}&#10;{detail}</title></rect>"
    )


def _label(span: Mapping[str, Any], sources: Sequence[Sequence[Any]]) -> str:
    source, line = span["location"][:2]
    data = span["data"]
    what = f"{span['kind']} {data.get('name') or data.get('function') or ''}".strip()
    text = ""
    if source < len(sources) and line:
        _, first, lines = sources[source]
        text = lines[line - first].strip() if 0 <= line - first < len(lines) else ""
    return f"{what:<18.18} {line:>4} {text:.36}"


def _detail(span: Mapping[str, Any]) -> str:
    counts = [f"{name}: {value}" for name, value in span["data"].items() if name not in ("name", "function")]
    return ", ".join([f"{_time(span['start'])} to {_time(span['end'])}", *counts])


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
