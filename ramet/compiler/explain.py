"""EXPLAIN for programs: per line of the user's code, what the compiler did with it, or did not, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ramet.compiler.driver import CompiledProgram


def explain(program: CompiledProgram, measured: Mapping[tuple[int, int], Sequence[str]] | None = None) -> str:
    """`measured` adds what happened in a run: (source, line) → remarks."""
    module = program.lowered
    by_line: dict[tuple[int, int], list[str]] = {}
    for note in program.notes:
        remark = f"{'+' if note.done else '-'} {note.by}: {note.what}"
        found = by_line.setdefault((note.location.source, note.location.line), [])
        if remark not in found:
            found.append(remark)
    for place, remarks in (measured or {}).items():
        by_line.setdefault(place, []).extend(f"= {remark}" for remark in remarks)
    lines = [_summary(program)]
    for number, source in enumerate(module.sources):
        lines.append(f"{source.file}")
        for offset, text in enumerate(source.lines):
            lines.append(f"{source.first_line + offset:5d}  {text}")
            lines += [
                f"       {' ' * (len(text) - len(text.lstrip()))}    {remark}"
                for remark in by_line.get((number, source.first_line + offset), [])
            ]
    return "\n".join(lines) + "\n"


def _summary(program: CompiledProgram) -> str:
    passes = ", ".join(
        f"{report.name} {report.ops_before}→{report.ops_after} ({report.seconds * 1000:.1f} ms)" for report in program.reports
    )
    return f"{program.lowered.num_ops()} ops lowered, {program.module.num_ops()} after passes\npasses: {passes}"
