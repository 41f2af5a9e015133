"""Keywords that can be said with simpler ones: not, if/then/else, dependent…"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ramet.grammar.schema_branches import text_of
from ramet.grammar.schema_document import ANNOTATIONS, TYPES, Document, refuse

OPPOSITE = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}
"""Bound → (type, the bound that its violation meets, by how much it is moved)."""
EXCLUDED_STRINGS = "x-ramet-excluded-strings"
"""Strings that a schema made here rules out."""


def alternatives_of_condition(schema: Mapping[str, Any]) -> list[Any]:
    condition = schema["if"]
    return [{"allOf": [condition, schema.get("then", True)]}, {"allOf": [{"not": condition}, schema.get("else", True)]}]


def dependency_alternatives(name: str, needs: Any) -> list[Any]:
    """`needs`: names that must be there when `name` is, or a schema that must hold then."""
    absent = {"properties": {name: False}}
    if isinstance(needs, list):
        return [absent, {"required": [name, *needs]}]
    return [absent, {"required": [name], "allOf": [needs]}]


def complement(schema: Any, pointer: str, document: Document) -> list[Any]:
    """Schemas whose union is everything that `schema` is not."""
    if isinstance(schema, bool):
        return [not schema]
    document.checked(document.add(pointer, schema))
    options: list[Any] = []
    for keyword, value in schema.items():
        if keyword not in ANNOTATIONS and not keyword.startswith("x-"):
            options += _violations(keyword, value, f"{pointer}/{keyword}", schema)
    return options or [False]


def _violations(keyword: str, value: Any, pointer: str, schema: Mapping[str, Any]) -> list[Any]:
    if keyword == "type":
        return _other_types(value if isinstance(value, list) else [value], pointer)
    if keyword in ("enum", "const"):
        return _other_values(value if keyword == "enum" else [value], pointer)
    if keyword == "required":
        return [{"type": "object", "properties": {name: False}} for name in value]
    if keyword == "properties":
        return [{"type": "object", "required": [name], "properties": {name: {"not": child}}} for name, child in value.items()]
    if keyword in ("allOf", "anyOf"):
        negated = [{"not": child} for child in value]
        return negated if keyword == "allOf" else [{"allOf": negated}]
    if keyword == "not":
        return [value]
    if keyword in OPPOSITE:
        kind, opposite, by = OPPOSITE[keyword]
        return [{"type": kind, opposite: value + by}] if value + by >= 0 or kind == "number" else []
    refuse(f"the opposite of {keyword!r} cannot be enforced", pointer)


def _other_types(types: list[str], pointer: str) -> list[Any]:
    if "integer" in types and "number" not in types:
        refuse("the opposite of type integer cannot be enforced; say what is wanted instead", pointer)
    others = [name for name in TYPES if name not in types and name != "integer"]
    return [{"type": others}] if others else []


def _other_values(values: list[Any], pointer: str) -> list[Any]:
    """Everything but some strings, booleans and null."""
    if any(not isinstance(value, str | bool | None) for value in values):
        refuse("only strings, booleans and null can be ruled out one by one", pointer)
    kept = [value for value in (None, True, False) if text_of(value) not in map(text_of, values)]
    strings = [value for value in values if isinstance(value, str)]
    rest = [{"type": ["number", "array", "object"]}, {"type": "string", EXCLUDED_STRINGS: strings}]
    return [*rest, {"enum": kept}] if kept else rest
