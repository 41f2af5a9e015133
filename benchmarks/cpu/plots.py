"""One picture per workload, as SVG: a panel per figure, a bar per engine with the spread of its rounds, the floor as a dashed line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from benchmarks.cpu.engines import ENGINES
from benchmarks.cpu.report import Row
from benchmarks.svg import legend, picture

_WIDTH, _HEIGHT, _LEFT, _TOP, _PITCH = 190, 160, 30, 62, 250


def workload_plot(name: str, rows: Sequence[Row]) -> str:
    engines = list(dict.fromkeys(engine for row in rows for engine in row.samples))
    width, height = max(430, _LEFT + _PITCH * len(rows)), _TOP + _HEIGHT + 36
    panels = "".join(_panel(row, engines, _LEFT + _PITCH * place) for place, row in enumerate(rows))
    title = f'<text class="h" x="{_LEFT}" y="16">{escape(name)}</text>'
    names = [(ENGINES[engine].title, ENGINES[engine].colour) for engine in engines]
    return picture(width, height, title + legend(names, _LEFT, 26, 115) + panels)


def _panel(row: Row, engines: Sequence[str], left: float) -> str:
    top = max((value for values in row.samples.values() for value in values), default=1.0) * 1.05 or 1.0
    better = f", {row.figure.better} is better" if row.figure.better else ""
    base = _TOP + _HEIGHT
    drawn = [
        f'<text x="{left}" y="{base + 15}">{escape(row.figure.name)}</text>',
        f'<text x="{left}" y="{base + 29}">{escape(row.figure.unit + better)}</text>',
    ]
    for place, engine in enumerate(engines):
        if values := row.samples.get(engine):
            drawn.append(_bar(left + place * _WIDTH / len(engines), _WIDTH / len(engines) - 8, values, top, ENGINES[engine].colour))
    if row.floor is not None:
        drawn.append(_floor(row.floor[0], top, left))
    return "".join(drawn)


def _bar(x: float, width: float, values: Sequence[float], top: float, colour: str) -> str:
    median = statistics.median(values)
    middle, height = x + width / 2, _HEIGHT * median / top
    y, low, high = (_TOP + _HEIGHT * (1 - value / top) for value in (median, min(values), max(values)))
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="#333"/>'
        f'<text x="{x:.1f}" y="{high - 4:.1f}">{median:.3g}</text>'
    )


def _floor(value: float, top: float, left: float) -> str:
    """Dashed where it is on the scale; else a word at the top."""
    if value > top:
        return f'<text x="{left + _WIDTH - 60}" y="{_TOP - 14}">floor: {value:.3g} ↑</text>'
    y = _TOP + _HEIGHT * (1 - value / top)
    line = f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#333" stroke-dasharray="4 3"/>'
    return line + f'<text x="{left + _WIDTH - 60}" y="{y - 3:.1f}">floor: {value:.3g}</text>'
