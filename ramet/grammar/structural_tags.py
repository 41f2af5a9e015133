"""Structural tags: free text in which a trigger ("<function=") begins a part that must follow a JSON schema up to its end mark; or a tree
of formats, see `tag_formats`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramet.errors import GrammarError
from ramet.grammar.arena import Arena
from ramet.grammar.char_ranges import ALL
from ramet.grammar.derivatives import Walker
from ramet.grammar.json_layout import Layout
from ramet.grammar.json_source import read_json
from ramet.grammar.lark_writer import write_rules
from ramet.grammar.schema_lowering import lower_schema
from ramet.grammar.tag_fields import check_keys, refuse, within
from ramet.grammar.tag_formats import LoweredFormat, lower_format

KEYS = ("type", "triggers", "structures")
STRUCTURE_KEYS = ("begin", "schema", "end")
FORMAT_KEYS = ("type", "format")


@dataclass(frozen=True, slots=True)
class _Structure:
    trigger: str
    rest_of_begin: str
    body: int  # expression of the JSON
    end: str


@dataclass(frozen=True, slots=True)
class LoweredTags:
    start: int
    structures: tuple[_Structure, ...]

    def lark(self, walker: Walker) -> str:
        options = " | ".join(f"tag_{index}" for index in range(len(self.structures)))
        lines = [f"start: ({options})* rest", "rest: TEXT", "TEXT: /(.|\\n)*/"]
        for index, structure in enumerate(self.structures):
            body, rules = write_rules(walker, structure.body, f"s{index}_")
            parts = " ".join(part for part in (_literal(structure.rest_of_begin), body, _literal(structure.end)) if part)
            lines += [f"head_{index}[lazy]: TEXT {_literal(structure.trigger)}", f"tag_{index}: head_{index} {parts}", *rules]
        return "\n".join(lines)


def lower_tags(arena: Arena, layout: Layout, source: str) -> LoweredTags | LoweredFormat:
    """`source`: JSON of {"triggers": [text], "structures": [{"begin", "schema", "end"}]}; every `begin` starts with a trigger. The text is
    any sequence of free text and structures. Or of {"format": tree}. Errors carry a JSON pointer."""
    tag = _parse(source)
    if "format" in tag:
        check_keys(tag, FORMAT_KEYS, "")
        return lower_format(arena, layout, tag["format"], "/format")
    check_keys(tag, KEYS, "")
    triggers = _triggers(tag)
    listed = tag.get("structures")
    if not isinstance(listed, list) or not listed:
        refuse("structures must be a list of objects with begin, schema and end", "/structures")
    structures = tuple(_structure(arena, layout, index, structure, triggers) for index, structure in enumerate(listed))
    used = sorted({structure.trigger for structure in structures})
    every = arena.rep(arena.chars(ALL))
    some = arena.rep(arena.chars(ALL), 1)
    marks = arena.alt(arena.text(trigger) for trigger in used)
    parts = []
    for structure in structures:
        ends_here = arena.seq(every, arena.text(structure.trigger))
        first = arena.conj((ends_here, arena.negate(arena.seq(every, marks, some))))
        parts.append(arena.seq(first, arena.text(structure.rest_of_begin), structure.body, arena.text(structure.end)))
    rest = arena.conj((every, arena.negate(arena.seq(every, marks, every))))
    return LoweredTags(arena.seq(arena.rep(arena.alt(parts)), rest), structures)


def _parse(source: str) -> Mapping[str, Any]:
    try:
        tag = read_json(source, "structural_tag")
    except json.JSONDecodeError as error:
        refuse(f"not JSON: {error}", "#")
    if not isinstance(tag, Mapping):
        refuse("not a JSON object", "#")
    return tag


def _triggers(tag: Mapping[str, Any]) -> list[str]:
    triggers = tag.get("triggers")
    if not isinstance(triggers, list) or not triggers or not all(isinstance(text, str) and text for text in triggers):
        refuse("triggers must be a list of texts", "/triggers")
    return triggers


def _structure(arena: Arena, layout: Layout, index: int, structure: Any, triggers: list[str]) -> _Structure:
    where = f"/structures/{index}"
    if not isinstance(structure, Mapping):
        refuse("a structure is an object with begin, schema and end", where)
    check_keys(structure, STRUCTURE_KEYS, where)
    begin, schema, end = structure.get("begin"), structure.get("schema", {}), structure.get("end", "")
    schema = {} if schema is None else schema
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(schema, Mapping | bool):
        refuse("a structure has begin (text), schema (object) and end (text)", where)
    trigger = max((text for text in triggers if begin.startswith(text)), key=len, default=None)
    if trigger is None:
        refuse(f"begin {begin!r} starts with none of the triggers", where + "/begin")
    try:
        body = lower_schema(arena, layout, schema)
    except GrammarError as error:
        raise within(error, f"{where}/schema") from error
    return _Structure(trigger, begin[len(trigger) :], body, end)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
