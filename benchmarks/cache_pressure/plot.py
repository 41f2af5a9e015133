"""Two panels per workload: programs per second and hit rate over the size of the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.svg import legend, picture

COLOURS = {
    "lru": "#b0b0b0",
    "lru, program order": "#72b7b2",
    "oracle": "#e45756",
    "kv_liveness": "#4c78a8",
    "lru, second tier": "#54a24b",
    "kv_liveness, second tier": "#9467bd",
}
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 330, 190, 56, 60, 70


def sweep_plot(cells: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(cell["workload"] for cell in cells))
    panels = []
    for row, name in enumerate(names):
        own = [cell for cell in cells if cell["workload"] == name]
        panels.append(_panel(f"{name}: programs per second", own, "programs_per_s", 0, row))
        panels.append(_panel(f"{name}: hit rate", own, "hit_rate", 1, row))
    width, height = 2 * (_WIDTH + _LEFT + 20), _TOP + len(names) * (_HEIGHT + _GAP)
    return picture(width, height, legend(COLOURS.items(), _LEFT, 14, 150) + "".join(panels), heading=12)


def _panel(title: str, cells: Sequence[Mapping[str, Any]], field: str, column: int, row: int) -> str:
    left, top = _LEFT + column * (_WIDTH + _LEFT + 10), _TOP + row * (_HEIGHT + _GAP)
    most = max(cell[field] for cell in cells) * 1.05 or 1.0
    drawn = [f'<text class="h" x="{left}" y="{top - 10}">{escape(title)}</text>']
    drawn.append(f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>')
    for part in (0.0, 0.5, 1.0):
        y = top + _HEIGHT * (1 - part)
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most * part:.2f}</text>')
    drawn += [
        f'<text x="{left + _WIDTH * size:.0f}" y="{top + _HEIGHT + 16}" text-anchor="middle">{100 * size:.0f} %</text>'
        for size in sorted({cell["pool"] for cell in cells})
    ]
    for name, colour in COLOURS.items():
        points = [(cell["pool"], cell[field]) for cell in cells if cell["variant"] == name]
        places = [f"{left + _WIDTH * size:.1f},{top + _HEIGHT * (1 - value / most):.1f}" for size, value in sorted(points)]
        drawn.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{place.split(",")[0]}" cy="{place.split(",")[1]}" r="3" fill="{colour}"/>' for place in places]
    return "".join(drawn)
