"""The keywords of one type each → the branches of one schema object, before its applicators are worked in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

from ramet.errors import GrammarError
from ramet.grammar.json_strings import StringFacts
from ramet.grammar.magnitude_automaton import EXACT_DIGITS
from ramet.grammar.schema_branches import (
    ANYTHING,
    EVERYTHING,
    Arrays,
    Bound,
    Branch,
    Contains,
    Goal,
    Numbers,
    Objects,
    Scope,
    Strings,
    Values,
    conjoin,
)
from ramet.grammar.schema_document import TYPES, Document, refuse
from ramet.grammar.schema_resources import escape
from ramet.grammar.string_formats import ANNOTATIONS, FORMATS, INTEGER_FORMATS

FRACTIONS = frozenset({Fraction(1)})
"""To be avoided by what is no integer."""
MAX_STEP = 1000


class Context(Protocol):
    """What is known of the document that a schema is part of."""

    document: Document
    strings: StringFacts


def typed_branches(schema: Mapping[str, Any], pointer: str, context: Context) -> tuple[Branch, ...]:
    formats = _formats(schema, pointer)
    types = types_of(schema)
    found: list[Branch] = []
    wanted = set(TYPES if types is None else types)
    literals = tuple(text for name, texts in (("null", ("null",)), ("boolean", ("true", "false"))) if name in wanted for text in texts)
    found += [Values(literals)] if literals else []
    if "number" in wanted or "integer" in wanted:
        numbers = _numbers(schema, pointer, integer="number" not in wanted)
        found += [numbers] if numbers is not None else []
    if "string" in wanted:
        strings = _strings(schema, formats, pointer, context)
        found += [strings] if strings.high is None or strings.low <= strings.high else []
    found += [_arrays(schema, pointer, context)] if "array" in wanted else []
    found += [_objects(schema, pointer, context)] if "object" in wanted else []
    return EVERYTHING if tuple(found) == EVERYTHING else tuple(found)


def types_of(schema: Mapping[str, Any]) -> list[str] | None:
    if "type" not in schema:
        return None
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return [*types, "null"] if schema.get("nullable") else list(types)


def _numbers(schema: Mapping[str, Any], pointer: str, integer: bool) -> Branch | None:
    found: Branch | None = Numbers(integer, step=whole_step(schema, pointer) if "multipleOf" in schema else None)
    for key, is_low, is_open in (
        ("minimum", True, False),
        ("exclusiveMinimum", True, True),
        ("maximum", False, False),
        ("exclusiveMaximum", False, True),
    ):
        if key in schema and found is not None:
            bound = Bound(Decimal(repr(schema[key])), is_open)
            found = conjoin(found, Numbers(low=bound) if is_low else Numbers(high=bound))
    if schema.get("format") in INTEGER_FORMATS and found is not None:
        low, high = (Bound(Decimal(value), False) for value in INTEGER_FORMATS[schema["format"]])
        found = conjoin(found, Numbers(low=low, high=high))
    return found


def whole_step(schema: Mapping[str, Any], pointer: str) -> Fraction:
    """Its multipleOf, as the decimal number that is written there."""
    step = Fraction(repr(schema["multipleOf"]))
    if step.numerator > MAX_STEP or (step * 10**EXACT_DIGITS).denominator != 1:
        refuse(f"is too large or too fine to be enforced; the limit is {MAX_STEP}", pointer + "/multipleOf")
    return step


def _strings(schema: Mapping[str, Any], formats: frozenset[str], pointer: str, context: Context) -> Strings:
    found = Strings(int(schema.get("minLength", 0)), None if "maxLength" not in schema else int(schema["maxLength"]))
    patterns = frozenset({schema["pattern"]}) if "pattern" in schema else frozenset()
    found = Strings(found.low, found.high, patterns, formats)
    readable(patterns, pointer + "/pattern", context)
    return found


def _formats(schema: Mapping[str, Any], pointer: str) -> frozenset[str]:
    """What `format` asks of strings."""
    name = schema.get("format")
    if name is None or name in ANNOTATIONS or name in INTEGER_FORMATS:
        return frozenset()
    if name not in FORMATS:
        refuse(f"the format {name!r} is not known; known: {', '.join(FORMATS)}", pointer + "/format")
    return frozenset({name})


def readable(patterns: Iterable[str], where: str, context: Context) -> None:
    """Refuses a regex that is none of ours."""
    for pattern in patterns:
        try:
            context.strings.body(Strings(patterns=frozenset({pattern})))
        except GrammarError as error:
            refuse(error.message.removeprefix("regex: "), where)


def _arrays(schema: Mapping[str, Any], pointer: str, context: Context) -> Arrays:
    document = context.document
    tuple_key = "items" if isinstance(schema.get("items"), list) else "prefixItems"
    rest_key = "additionalItems" if tuple_key == "items" else "items"
    prefix = tuple(frozenset({document.child(pointer, tuple_key, index)}) for index in range(len(schema.get(tuple_key, ()))))
    rest: Goal = frozenset({document.child(pointer, rest_key)}) if rest_key in schema else ANYTHING
    if schema.get(rest_key) is False:
        high: int | None = min(len(prefix), int(schema.get("maxItems", len(prefix))))
    else:
        high = int(schema["maxItems"]) if "maxItems" in schema else None
    low, unique = int(schema.get("minItems", 0)), pointer + "/uniqueItems" if schema.get("uniqueItems") else ""
    contained = [document.child(pointer, "contains")] if "contains" in schema else []
    contains = tuple(_contains(schema, wanted) for wanted in contained)
    num_seen = None if rest_key in schema else len(prefix)
    return Arrays(prefix, rest, low, high, unique, tuple(filter(None, contains)), num_seen, frozenset(contained))


def _contains(schema: Mapping[str, Any], wanted: str) -> Contains | None:
    least, most = int(schema.get("minContains", 1)), int(schema["maxContains"]) if "maxContains" in schema else None
    return Contains(wanted, least, most) if least or most is not None else None


def _objects(schema: Mapping[str, Any], pointer: str, context: Context) -> Objects:
    document = context.document
    named = tuple((name, frozenset({document.child(pointer, "properties", name)})) for name in schema.get("properties", {}))
    patterns = [*schema.get("patternProperties", {})]
    for pattern in patterns:
        readable([pattern], f"{pointer}/patternProperties/{escape(pattern)}", context)
    matching = tuple((pattern, frozenset({document.child(pointer, "patternProperties", pattern)})) for pattern in patterns)
    rest_key = "additionalProperties"
    rest: Goal = frozenset({document.child(pointer, rest_key)}) if rest_key in schema else ANYTHING
    required = schema.get("required", [])
    return Objects(
        names=tuple(dict.fromkeys((*schema.get("properties", {}), *required))),
        required=frozenset(required),
        low=int(schema.get("minProperties", 0)),
        high=int(schema["maxProperties"]) if "maxProperties" in schema else None,
        scopes=(Scope(named, matching, rest),) if named or matching or rest else (),
        keys=frozenset({document.child(pointer, "propertyNames")}) if "propertyNames" in schema else ANYTHING,
        counted_at=pointer if schema.keys() & {"minProperties", "maxProperties", "patternProperties"} else "",
    )
