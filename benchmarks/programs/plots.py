"""One picture per workload, as SVG: latency and throughput at each round-trip time, and what each pass is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.svg import legend, picture

COLOURS = {"interpreted": "#b0b0b0", "passes off": "#f58518", "compiled": "#4c78a8"}
_WIDTH, _HEIGHT, _LEFT, _TOP = 300, 170, 46, 46


def workload_plot(name: str, cells: Sequence[Mapping[str, Any]]) -> str:
    """`cells`: workload, variant, rtt_ms, latency_s, programs_per_s."""
    main = [cell for cell in cells if cell["variant"] in COLOURS]
    ablated = [cell for cell in cells if cell["variant"].startswith("without ")]
    panels = [
        _bars("seconds per program, alone", main, "latency_s", 0),
        _bars("programs per second, together", main, "programs_per_s", _WIDTH + 30),
        _ablation(main, ablated, 2 * (_WIDTH + 30)),
    ]
    width, height = 3 * (_WIDTH + 30) + 20, _HEIGHT + _TOP + 60
    title = f'<text class="h" x="{_LEFT}" y="16">{escape(name)}</text>'
    return picture(width, height, title + legend(COLOURS.items(), _LEFT, 24, 110) + "".join(panels))


def _bars(title: str, cells: Sequence[Mapping[str, Any]], field: str, left: float) -> str:
    trips = sorted({cell["rtt_ms"] for cell in cells})
    top = max((cell[field] for cell in cells), default=1.0) or 1.0
    group = (_WIDTH - 20) / max(1, len(trips))
    drawn = [f'<text x="{left + _LEFT}" y="{_TOP + _HEIGHT + 36}">{title}</text>']
    for place, trip in enumerate(trips):
        drawn.append(f'<text x="{left + _LEFT + group * place}" y="{_TOP + _HEIGHT + 18}">{trip:g} ms away</text>')
        for index, variant in enumerate(COLOURS):
            x = left + _LEFT + group * place + index * group / 4
            found = [cell[field] for cell in cells if (cell["rtt_ms"], cell["variant"]) == (trip, variant)]
            drawn += [_bar(x, group / 4 - 3, value, top, COLOURS[variant]) for value in found]
    return "".join(drawn)


def _bar(x: float, width: float, value: float, top: float, colour: str) -> str:
    height = _HEIGHT * value / top
    y = _TOP + _HEIGHT - height
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
        f'<text x="{x:.1f}" y="{y - 3:.1f}" style="font-size:8px">{value:.3g}</text>'
    )


def _ablation(main: Sequence[Mapping[str, Any]], ablated: Sequence[Mapping[str, Any]], left: float) -> str:
    title = f'<text x="{left + _LEFT}" y="{_TOP + _HEIGHT + 36}">latency without one pass, against all of them</text>'
    rows = []
    for index, cell in enumerate(ablated):
        whole = next((each for each in main if each["variant"] == "compiled" and each["rtt_ms"] == cell["rtt_ms"]), None)
        if whole is None or not whole["latency_s"]:
            continue
        ratio, y = cell["latency_s"] / whole["latency_s"], _TOP + 16 * index
        rows.append(f'<text x="{left + _LEFT}" y="{y + 10}">{escape(cell["variant"])}</text>')
        rows.append(f'<rect x="{left + _LEFT + 170}" y="{y}" width="{min(110.0, 40 * ratio):.0f}" height="11" fill="#e45756"/>')
        rows.append(f'<text x="{left + _LEFT + 174 + min(110.0, 40 * ratio):.0f}" y="{y + 10}">{ratio:.2f}×</text>')
    if not rows:
        rows = [f'<text x="{left + _LEFT}" y="{_TOP + 14}">no pass on its own changes this program</text>']
    return title + "".join(rows)
