"""Structural tags: free text in which a trigger ("<function=") begins a part that must follow a JSON schema up to its end mark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from ramet.errors import GrammarError, Unsupported


def to_lark(source: str) -> str:
    """`source`: JSON of {"triggers": [text], "structures": [{"begin", "schema", "end"}]}; every `begin` starts with a trigger. The text is
    any sequence of free text and structures. Errors carry a JSON pointer."""
    tag = _parse(source)
    triggers = _triggers(tag)
    structures = tag.get("structures")
    if not isinstance(structures, list) or not structures:
        _refuse("structures must be a list of objects with begin, schema and end", "/structures")
    rules = [_rules(index, structure, triggers) for index, structure in enumerate(structures)]
    options = " | ".join(f"tag_{index}" for index in range(len(rules)))
    return f"start: ({options})* rest\nrest: TEXT\nTEXT: /(.|\\n)*/\n" + "".join(rules)


def _parse(source: str) -> Mapping[str, Any]:
    try:
        tag = json.loads(source)
    except ValueError as error:
        _refuse(f"not JSON: {error}", "#")
    if not isinstance(tag, Mapping):
        _refuse("not a JSON object", "#")
    if "format" in tag and "structures" not in tag:
        raise Unsupported("structural_tag with a `format` tree is not supported; give triggers and structures", param="structural_tag")
    return tag


def _triggers(tag: Mapping[str, Any]) -> list[str]:
    triggers = tag.get("triggers")
    if not isinstance(triggers, list) or not triggers or not all(isinstance(text, str) and text for text in triggers):
        _refuse("triggers must be a list of texts", "/triggers")
    return triggers


def _rules(index: int, structure: Any, triggers: list[str]) -> str:
    where = f"/structures/{index}"
    if not isinstance(structure, Mapping):
        _refuse("a structure is an object with begin, schema and end", where)
    begin, schema, end = structure.get("begin"), structure.get("schema", {}), structure.get("end", "")
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(schema, Mapping):
        _refuse("a structure has begin (text), schema (object) and end (text)", where)
    trigger = max((text for text in triggers if begin.startswith(text)), key=len, default=None)
    if trigger is None:
        _refuse(f"begin {begin!r} starts with none of the triggers", where + "/begin")
    body = " ".join(part for part in (_literal(begin[len(trigger) :]), "%json " + json.dumps(schema), _literal(end)) if part)
    return f"head_{index}[lazy]: TEXT {_literal(trigger)}\ntag_{index}: head_{index} {body}\n"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _refuse(what: str, where: str) -> NoReturn:
    raise GrammarError(f"structural_tag: {what}", where=where, param="structural_tag")
