"""Structural tags: free text in which a trigger ("<function=") begins a part that must follow a JSON schema up to its end mark; or a tree
of formats, see `tag_formats`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ramet.grammar.arena import Arena
from ramet.grammar.json_layout import Layout
from ramet.grammar.json_source import read_json
from ramet.grammar.tag_fields import check_keys, list_of, refuse, texts_of
from ramet.grammar.tag_formats import LoweredFormat, Structure, lower_format, lower_structures

KEYS = ("type", "triggers", "structures")
STRUCTURE_KEYS = ("begin", "schema", "end")
FORMAT_KEYS = ("type", "format")


def lower_tags(arena: Arena, layout: Layout, source: str) -> LoweredFormat:
    """`source`: JSON of {"triggers": [text], "structures": [{"begin", "schema", "end"}]}; every `begin` starts with a trigger. The text is
    any sequence of free text and structures. Or of {"format": tree}. Errors carry a JSON pointer."""
    tag = _parse(source)
    if "format" in tag:
        check_keys(tag, FORMAT_KEYS, "")
        return lower_format(arena, layout, tag["format"], "/format")
    check_keys(tag, KEYS, "")
    list_of(tag, "triggers", "")
    triggers, listed = texts_of(tag, "triggers", ""), list_of(tag, "structures", "")
    return lower_structures(
        arena, layout, [_structure(structure, triggers, f"/structures/{index}") for index, structure in enumerate(listed)]
    )


def _parse(source: str) -> Mapping[str, Any]:
    try:
        tag = read_json(source, "structural_tag")
    except json.JSONDecodeError as error:
        refuse(f"not JSON: {error}", "#")
    return tag if isinstance(tag, Mapping) else refuse("not a JSON object", "#")


def _structure(structure: Any, triggers: Sequence[str], where: str) -> Structure:
    if not isinstance(structure, Mapping):
        refuse("a structure is an object with begin, schema and end", where)
    check_keys(structure, STRUCTURE_KEYS, where)
    begin, schema, end = structure.get("begin"), structure.get("schema", {}), structure.get("end", "")
    schema = {} if schema is None else schema
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(schema, Mapping | bool):
        refuse("a structure has begin (text), schema (object) and end (text)", where)
    trigger = max((text for text in triggers if begin.startswith(text)), key=len, default=None)
    if trigger is None:
        refuse(f"begin {begin!r} starts with none of the triggers", f"{where}/begin")
    return Structure(trigger, begin[len(trigger) :], schema, end, f"{where}/schema")
