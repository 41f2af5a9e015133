"""A constraint's source → what llguidance compiles, and the same language as an expression where it is ours to know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ramet.errors import GrammarError
from ramet.grammar.arena import Arena
from ramet.grammar.derivatives import INFINITE, Walker
from ramet.grammar.ebnf_lowering import lower_ebnf
from ramet.grammar.json_layout import COMPACT, Layout
from ramet.grammar.lark_writer import write_rules
from ramet.grammar.pattern_expressions import whole
from ramet.grammar.schema_lowering import lower_schema
from ramet.grammar.structural_tags import lower_tags
from ramet.grammar.worst_case import longest_ending

ANY_JSON = "$$ANY$$"
"""As a json_schema: any JSON value."""
MAX_SOURCE = 1 << 20
MAX_DEPTH = 200


@dataclass(frozen=True, slots=True)
class Lowered:
    """`text`: in llguidance's Lark, or several grammars as its JSON, or for regexes the regex. `language`: the same as an expression, or
    one as another process wrote it; None where it is not known, and outputs are not bounded. `worst`: `longest_ending` of it."""

    kind: str
    text: str
    language: Arena | bytes | None = None
    start: int = 0
    worst: int = INFINITE

    @property
    def arena(self) -> Arena | None:
        """The language, read from bytes each time: most constraints never ask for it, and reading takes the interpreter's time."""
        return Arena.load(json.loads(self.language)) if isinstance(self.language, bytes) else self.language

    @property
    def size(self) -> int:
        """About how many bytes the language takes when it is written down."""
        if isinstance(self.language, bytes):
            return len(self.language)
        return 0 if self.language is None else 24 * len(self.language.nodes)

    def dump(self) -> tuple[dict[str, Any], bytes]:
        """Head, as JSON values, and the language as a line of JSON."""
        arena = self.arena
        dumped = None if arena is None else arena.dump()
        return {"kind": self.kind, "text": self.text, "start": self.start, "worst": self.worst}, json.dumps(dumped).encode()

    @classmethod
    def load(cls, head: dict[str, Any], language: bytes) -> Lowered:
        return cls(head["kind"], head["text"], None if language.strip() == b"null" else language, head["start"], head["worst"])


def lower(kind: str, source: str, whitespace: str = COMPACT) -> Lowered:
    """Kinds: json_schema, structural_tag, ebnf, regex."""
    if len(source) > MAX_SOURCE:
        raise GrammarError(f"{kind}: the source has {len(source)} characters; the limit is {MAX_SOURCE}", param=kind)
    try:
        if kind == "json_schema":
            return _schema(source, whitespace)
        if kind == "structural_tag":
            return _tags(source, whitespace)
        if kind == "ebnf":
            return _ebnf(source, whitespace)
        return _regex(source) if kind == "regex" else Lowered(kind, source)
    except RecursionError as error:
        raise GrammarError(f"{kind}: nested too deeply; the limit is about {MAX_DEPTH} levels", param=kind) from error


def parse_schema(source: str) -> Any:
    try:
        schema = json.loads(source)
    except json.JSONDecodeError as error:
        raise GrammarError(f"json_schema is not JSON: {error.msg}", where=f"char {error.pos}", param="json_schema") from error
    if not isinstance(schema, dict | bool):
        raise GrammarError(f"json_schema must be a JSON object, not {source.strip()[:40]}", where="#", param="json_schema")
    return schema


def _schema(source: str, whitespace: str) -> Lowered:
    schema = True if source.strip() == ANY_JSON else parse_schema(source)
    arena = Arena()
    start = lower_schema(arena, Layout(arena, whitespace), schema)
    return _finished("json_schema", arena, start)


def _tags(source: str, whitespace: str) -> Lowered:
    arena = Arena()
    tags = lower_tags(arena, Layout(arena, whitespace), source)
    walker = Walker(arena)
    return Lowered("structural_tag", tags.lark(walker), arena, tags.start, longest_ending(walker, tags.start))


def _ebnf(source: str, whitespace: str) -> Lowered:
    arena = Arena()
    text, start = lower_ebnf(arena, source, whitespace)
    if start is None:
        return Lowered("ebnf", text)
    return Lowered("ebnf", text, arena, start, longest_ending(Walker(arena), start))


def _finished(kind: str, arena: Arena, start: int) -> Lowered:
    walker = Walker(arena)
    if walker.is_empty(start):
        raise GrammarError(f"{kind}: no text at all satisfies it", where="#", param=kind)
    expression, lines = write_rules(walker, start)
    return Lowered(kind, "\n".join((f"start: {expression}", *lines)), arena, start, longest_ending(walker, start))


def _regex(source: str) -> Lowered:
    """A regex that Python cannot read is left to the engine, which says what is wrong with it, and where."""
    arena = Arena()
    try:
        start = whole(arena, source, "python")
        walker = Walker(arena)
        return Lowered("regex", source, arena, start, longest_ending(walker, start))
    except GrammarError:
        return Lowered("regex", source)
