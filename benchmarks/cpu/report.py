"""Findings as rows, and rows as a Markdown table: medians, the ratio to the best peer, the floor and how much of it is reached."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu.engines import ENGINES, OURS
from benchmarks.cpu.floors import Floor
from benchmarks.cpu.measure import Findings
from benchmarks.cpu.workloads import Figure, Workload


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `floor`: its value, and what bounds it."""

    workload: str
    figure: Figure
    samples: dict[str, list[float]]
    floor: tuple[float, str] | None

    def median(self, engine: str) -> float | None:
        values = self.samples.get(engine)
        return statistics.median(values) if values else None

    @property
    def ratio(self) -> float | None:
        """How many times better than the best peer; None where one of the two is missing."""
        ours = self.median(OURS)
        peers = [value for engine in self.samples if engine != OURS and (value := self.median(engine))]
        if not ours or not peers or self.figure.better is None:
            return None
        return ours / max(peers) if self.figure.better == "higher" else min(peers) / ours

    @property
    def of_floor(self) -> float | None:
        """1 would be the floor itself."""
        ours = self.median(OURS)
        if not ours or self.floor is None:
            return None
        return ours / self.floor[0] if self.figure.better == "higher" else self.floor[0] / ours

    def data(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "figure": self.figure.name,
            "unit": self.figure.unit,
            "better": self.figure.better,
            "medians": {engine: self.median(engine) for engine in self.samples},
            "samples": self.samples,
            "ratio_to_best_peer": self.ratio,
            "floor": self.floor and self.floor[0],
            "floor_bound": self.floor and self.floor[1],
            "of_floor": self.of_floor,
        }


def make_rows(findings: Findings, workloads: Iterable[Workload], floor: Floor) -> list[Row]:
    return [
        Row(workload.name, figure, dict(findings.samples.get(figure.name, {})), figure.floor and figure.floor(floor))
        for workload in workloads
        for figure in workload.figures
    ]


def table(rows: Sequence[Row], engines: Sequence[str], findings: Findings) -> str:
    """The table, then why values are missing, then what was compared and how quiet the machine was."""
    titles = [ENGINES[engine].title for engine in engines]
    lines = ["| | unit | " + " | ".join(titles) + " | × best peer | floor | of it | bound by |"]
    lines.append("|---|---|" + "---|" * (len(engines) + 4))
    lines += [_line(row, engines, findings) for row in rows]
    lines += ["", *(f"- {note}" for note in _notes(engines, findings))]
    return "\n".join(lines) + "\n"


def _line(row: Row, engines: Sequence[str], findings: Findings) -> str:
    cells = [_cell(row, engine, findings) for engine in engines]
    ratio = "–" if row.ratio is None else f"**{row.ratio:.2f}**"
    floor, bound = ("–", "–") if row.floor is None else (_number(row.floor[0]), row.floor[1])
    part = "–" if row.of_floor is None else f"{row.of_floor:.0%}"
    return f"| {row.workload}: {row.figure.name} | {row.figure.unit} | {' | '.join(cells)} | {ratio} | {floor} | {part} | {bound} |"


def _cell(row: Row, engine: str, findings: Findings) -> str:
    median = row.median(engine)
    failed = engine in findings.failures.get(row.workload, {})
    return ("failed" if failed else "–") if median is None else _number(median)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(engines: Sequence[str], findings: Findings) -> Iterable[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for workload, failed in findings.failures.items():
        for engine, reason in failed.items():
            reasons.setdefault((engine, reason), []).append(workload)
    for (engine, reason), where in reasons.items():
        yield f"{ENGINES[engine].title} failed in {', '.join(where)}: {reason}"
    for engine in engines:
        if about := findings.about.get(engine):
            yield f"{ENGINES[engine].title} {about['version']}: {about['options']}"
    if findings.others:
        median, worst = statistics.median(findings.others), max(findings.others)
        yield f"other processes used {median:.0%} of the cores during a measurement (median; at worst {worst:.0%})"
