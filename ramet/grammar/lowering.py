"""A constraint's source → what llguidance compiles, and the same language as an expression where it is ours to know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ramet.errors import GrammarError
from ramet.grammar.arena import INFINITE, Arena
from ramet.grammar.derivatives import Walker
from ramet.grammar.ebnf_lowering import lower_ebnf
from ramet.grammar.json_layout import COMPACT, Layout
from ramet.grammar.json_source import read_json
from ramet.grammar.language import Language
from ramet.grammar.lark_writer import write_rules
from ramet.grammar.pattern_expressions import whole
from ramet.grammar.schema_lowering import lower_schema
from ramet.grammar.structural_tags import lower_tags

ANY_JSON = "$$ANY$$"
"""As a json_schema: any JSON value."""
MAX_SOURCE = 1 << 20
MAX_DEPTH = 200
MAX_SHORTEST = 1 << 18
"""Bytes of a shortest text. A grammar that asks for more is compiled for nothing."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """`text`: in llguidance's Lark, or several grammars as its JSON, or for regexes the regex. `language`: the same as an expression, or
    one as another process wrote it; None where it is not known, and outputs are not bounded. `worst`: bytes of the shortest ending at the
    worst place (`LongestEndings`). `is_guarded`: `text` allows more than the language, which must be walked beside it."""

    kind: str
    text: str
    language: Language | bytes | None = None
    worst: int = INFINITE
    is_guarded: bool = False

    @classmethod
    def of(cls, kind: str, text: str, walker: Walker, start: int) -> Lowered:
        length = walker.shortest(start)
        if MAX_SHORTEST < length < INFINITE:
            raise GrammarError(f"{kind}: its shortest text has {length} bytes; the limit is {MAX_SHORTEST}", param=kind)
        language = Language.of(walker, start)
        return cls(kind, text, language, language.endings.of(start), walker.series.is_needed)

    def read(self) -> Language:
        """The language, which must be known; from bytes anew each time."""
        assert self.language is not None
        return Language.load(self.language) if isinstance(self.language, bytes) else self.language

    @property
    def size(self) -> int:
        """About how many bytes the language takes when it is written down."""
        if isinstance(self.language, bytes):
            return len(self.language)
        return 0 if self.language is None else 24 * self.language.walker.num_settled

    def dump(self) -> tuple[dict[str, Any], bytes]:
        """Head, as JSON values, and the language as a line of bytes; empty where it is not known."""
        language = b"" if self.language is None else self.language if isinstance(self.language, bytes) else self.language.dump()
        return {"kind": self.kind, "text": self.text, "worst": self.worst, "is_guarded": self.is_guarded}, language

    @classmethod
    def load(cls, head: dict[str, Any], language: bytes) -> Lowered:
        return cls(head["kind"], head["text"], language.strip() or None, head["worst"], head["is_guarded"])


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
        schema = read_json(source, "json_schema")
    except json.JSONDecodeError as error:
        raise GrammarError(f"json_schema is not JSON: {error.msg}", where=f"char {error.pos}", param="json_schema") from error
    if not isinstance(schema, dict | bool):
        raise GrammarError(f"json_schema must be a JSON object, not {source.strip()[:40]}", where="#", param="json_schema")
    return schema


def _schema(source: str, whitespace: str) -> Lowered:
    schema = True if source.strip() == ANY_JSON else parse_schema(source)
    arena = Arena()
    try:
        start = lower_schema(arena, Layout(arena, whitespace), schema)
        return _finished("json_schema", arena, start)
    except GrammarError as error:
        if error.where is not None:
            raise
        raise GrammarError(f"json_schema: {error.message.removeprefix('json_schema: ')}", where="#", param="json_schema") from error


def _tags(source: str, whitespace: str) -> Lowered:
    arena = Arena()
    tags = lower_tags(arena, Layout(arena, whitespace), source)
    walker = Walker(arena)
    if walker.is_empty(tags.start):
        raise GrammarError("structural_tag: no text at all satisfies it", where="#", param="structural_tag")
    return Lowered.of("structural_tag", tags.lark(walker), walker, tags.start)


def _ebnf(source: str, whitespace: str) -> Lowered:
    arena = Arena()
    text, start = lower_ebnf(arena, source, whitespace)
    if start is None:
        return Lowered("ebnf", text)
    return Lowered.of("ebnf", text, Walker(arena), start)


def _finished(kind: str, arena: Arena, start: int) -> Lowered:
    walker = Walker(arena)
    if walker.is_empty(start):
        raise GrammarError(f"{kind}: no text at all satisfies it", where="#", param=kind)
    expression, lines = write_rules(walker, start)
    return Lowered.of(kind, "\n".join((f"start: {expression}", *lines)), walker, start)


def _regex(source: str) -> Lowered:
    """A regex that Python cannot read is left to the engine, which says what is wrong with it, and where."""
    arena = Arena()
    try:
        start = whole(arena, source, "python")
        walker = Walker(arena)
    except GrammarError:
        return Lowered("regex", source)
    return Lowered.of("regex", source, walker, start)
