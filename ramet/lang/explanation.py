"""EXPLAIN for programs: how a program is executed and why, what each pass did with which line, and what happened in a run of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ramet.errors import UserError
from ramet.lang.compilation import Compilation
from ramet.lang.waterfall import waterfall

if TYPE_CHECKING:
    from ramet.ir.module import Module

COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "forced_tokens")


@dataclass(frozen=True, slots=True)
class Explanation:
    """`str()` of it is for people. `compiled`: whether mode="auto" compiles; `reason`: why not. `spans` are those of the analysed run."""

    text: str
    compiled: bool
    reason: str = ""
    spans: Sequence[Mapping[str, Any]] = ()
    sources: Sequence[Sequence[Any]] = field(default_factory=tuple)

    def __str__(self) -> str:
        return self.text

    def waterfall(self) -> str:
        """The analysed run as a picture (SVG)."""
        return waterfall(self.spans, self.sources)


def explain_function(name: str, compilation: Compilation, spans: Sequence[Mapping[str, Any]] | None = None, where: str = "") -> Explanation:
    from ramet.compiler.explain import explain

    try:
        compiled = compilation.get().compiled
    except UserError as error:
        return Explanation(f"{name} is interpreted on the client, because it does not compile:\n{error.message}\n", False, error.message)
    module = compiled.module
    found = list(spans or ())
    body = explain(compiled, _by_line(found))
    head = f"{name} is compiled{f' and runs {where}' if where else ''}\n"
    totals = _totals(found) if spans is not None else ""
    return Explanation(head + body + totals, True, spans=found, sources=sources_of(module))


def sources_of(module: Module) -> list[list[Any]]:
    return [[each.file, each.first_line, list(each.lines)] for each in module.sources]


def _by_line(spans: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], list[str]]:
    """Remarks per (source, line): all executions of one op together."""
    groups: dict[tuple[tuple[int, ...], str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for span in spans:
        subject = str(span["data"].get("name") or span["data"].get("function") or "")
        groups[(tuple(span["location"]), span["kind"], subject)].append(span)
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for (location, kind, subject), members in sorted(groups.items()):
        found[(location[0], location[1])].append(_remark(f"{kind} {subject}".strip(), members))
    return found


def _remark(what: str, spans: Sequence[Mapping[str, Any]]) -> str:
    seconds = [span["end"] - span["start"] for span in spans]
    times = f" {len(spans)} times, {sum(seconds) * 1000:.1f} ms in all" if len(spans) > 1 else f" {seconds[0] * 1000:.1f} ms"
    counts = {name: sum(int(span["data"].get(name) or 0) for span in spans) for name in COUNTS}
    tokens = ""
    if counts["prompt_tokens"]:
        tokens = (
            f"; {counts['prompt_tokens']} prompt tokens, {counts['cached_tokens']} of them cached; {counts['completion_tokens']} generated"
        )
        tokens += f", {counts['forced_tokens']} of them forced by the grammar" if counts["forced_tokens"] else ""
    return f"{what}:{times}{tokens}"


def _totals(spans: Sequence[Mapping[str, Any]]) -> str:
    sums = {name: sum(int(span["data"].get(name) or 0) for span in spans) for name in COUNTS}
    computed = sums["prompt_tokens"] - sums["cached_tokens"]
    bound = sum(int(span["data"].get("new_prompt_tokens") or 0) for span in spans)
    wall = max((span["end"] for span in spans), default=0.0)
    busy = sum(span["end"] - span["start"] for span in spans if span["kind"] in ("gen", "select"))
    lines = [
        f"the run: {wall * 1000:.1f} ms; {sum(span['kind'] in ('gen', 'select') for span in spans)} generations and selects, "
        f"{busy / wall if wall else 0.0:.1f} at once on average",
        f"prefill: {computed} of {sums['prompt_tokens']} prompt tokens computed; each distinct prefix once would be about {bound}",
        f"output: {sums['completion_tokens']} tokens, {sums['forced_tokens']} of them forced by grammars",
    ]
    return "\n".join(lines) + "\n"
