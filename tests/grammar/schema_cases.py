"""One or more schemas for each keyword and each combination with a rule of its own. The docs' support matrix is made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """`values` are tried besides the common ones; which of all are valid is for jsonschema to say."""

    name: str
    schema: Any
    values: tuple[Any, ...] = field(default=())


_OPEN = {"properties": {"a": {"type": "integer"}}}
_CLOSED = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "additionalProperties": False}
_CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind"]}
_DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}}, "required": ["kind"]}
_NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
    "required": ["v"],
    "additionalProperties": False,
}

CASES = (
    Case("true", True),
    Case("annotations", {"title": "t", "description": "d", "default": 1, "examples": [2], "deprecated": True, "x-more": 1}),
    *(Case(f"type {name}", {"type": name}) for name in ("null", "boolean", "integer", "number", "string", "array", "object")),
    Case("type list", {"type": ["string", "null", "array"]}),
    Case("enum", {"enum": ["red", 1, 10, 1.5, None, [1], {"b": "x"}, "é", 'q"\\\n']}, ("green",)),
    Case("enum beside type", {"type": "string", "enum": ["a", 1, "ab"]}),
    Case("const", {"const": {"a": {"a": 1}}}),
    Case("minimum maximum", {"type": "integer", "minimum": -1, "maximum": 10}, (11, -2, 9)),
    Case("minimum of numbers", {"type": "number", "minimum": 0.25}, (0.2, 0.26, 0.125, 12.75)),
    Case("exclusive bounds", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2.5}, (0.01, 2.49, 2.5, 2.51)),
    Case("exclusive bounds of integers", {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}),
    Case("bounds without type", {"minimum": 1, "maximum": 3}),
    Case("multipleOf", {"type": "integer", "multipleOf": 7}, (7, 8, 14, -21, 700, 701)),
    Case("multipleOf in bounds", {"type": "integer", "multipleOf": 5, "minimum": 10, "maximum": 40}, (15, 45, 40, 12)),
    Case("multipleOf 0.5", {"type": "number", "multipleOf": 0.5}, (2.5, 2.25, 7.0, -3.5)),
    Case("minLength maxLength", {"type": "string", "minLength": 1, "maxLength": 2}, ("é" * 2, "é" * 3, "\n\n", "😀😀")),
    Case("pattern", {"type": "string", "pattern": "b[0-9]"}, ("ab1c", "ab", "b\n1")),
    Case("pattern anchored", {"type": "string", "pattern": "^[a-z]+$"}, ("A", "abz", 'a"')),
    Case("pattern and length", {"type": "string", "pattern": "^a", "minLength": 2, "maxLength": 3}, ("abcd",)),
    Case("pattern alternatives", {"pattern": "^a|b$"}, ("xb", "ax", "bx")),
    Case("pattern classes", {"type": "string", "pattern": r"^\d\w\s[^\d]$"}, ("1a b", "1a 1", "11\tb")),
    *(
        Case(f"format {name}", {"type": "string", "format": name}, values)
        for name, values in (
            ("date", ("2023-02-29", "1900-02-29", "2000-02-29", "2024-13-01", "2024-04-31", "2024-1-1")),
            ("time", ()),
            ("uuid", ("123e4567-e89b-12d3-a456-426614174000", "123e4567")),
            ("ipv4", ("1.2.3.4", "1.2.3.256", "255.255.255.255", "1.2.3")),
            ("ipv6", ("::1", "fe80::1:2", "1:2:3:4:5:6:7:8", "1::2::3", "12345::", "::")),
        )
        if values
    ),
    Case("properties", _OPEN, ({"a": 1, "z": None},)),
    Case("required", {"type": "object", "properties": {"a": {}}, "required": ["a", "b"]}, ({"b": 1}, {"a": None, "b": []})),
    Case("additionalProperties false", _CLOSED),
    Case(
        "additionalProperties schema",
        {**_OPEN, "type": "object", "additionalProperties": {"type": "string"}},
        ({"a": 1, "z": "y"}, {"z": 3}),
    ),
    Case(
        "patternProperties",
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 2}}},
        ({"ab": 1}, {"ab": 3}),
    ),
    Case("patternProperties closed", {"type": "object", "patternProperties": {"^a": {}}, "additionalProperties": False}, ({"ab": 1},)),
    Case("propertyNames", {"type": "object", "propertyNames": {"pattern": "^[ab]$"}}),
    Case("propertyNames enum", {"type": "object", "propertyNames": {"enum": ["a", "kind"]}}),
    Case("minProperties", {"type": "object", "minProperties": 1}),
    Case("minProperties closed", {**_CLOSED, "minProperties": 2}),
    Case("maxProperties", {"type": "object", "properties": {"b": {}}, "maxProperties": 1}),
    Case("items", {"type": "array", "items": {"type": "integer"}}, ([1.5],)),
    Case("minItems maxItems", {"type": "array", "minItems": 1, "maxItems": 2}),
    Case("prefixItems", {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}),
    Case(
        "prefixItems and items",
        {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}},
        (["a", 1, 2], ["a", "b"]),
    ),
    Case("contains", {"type": "array", "contains": {"type": "string"}}, ([1, "a", 2],)),
    Case("minContains", {"type": "array", "items": {"type": "integer"}, "contains": {"minimum": 2}, "minContains": 2}, ([3, 1, 4],)),
    Case("uniqueItems of an enum", {"type": "array", "items": {"enum": ["a", 1, 2]}, "uniqueItems": True}, (["a", 1], [2, 1, "a"], [1, 1])),
    Case("allOf", {"allOf": [{"type": "integer", "minimum": 1}, {"maximum": 3}]}),
    Case(
        "allOf objects",
        {"allOf": [_OPEN, {"required": ["a"], "properties": {"a": {"minimum": 1}, "b": {"type": "string"}}}], "type": "object"},
    ),
    Case(
        "allOf closes", {"type": "object", "allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]}
    ),
    Case(
        "anyOf", {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "string", "maxLength": 1}, {"required": ["b"], "type": "object"}]}
    ),
    Case("oneOf types", {"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "array"}]}),
    Case("oneOf by const", {"oneOf": [_CAT, _DOG]}, ({"kind": "dog", "name": "rex"}, {"kind": "cow"}, {"kind": "cat", "lives": "x"})),
    Case("oneOf by range", {"type": "integer", "oneOf": [{"maximum": 1}, {"minimum": 5}]}),
    Case("oneOf by pattern", {"type": "string", "oneOf": [{"pattern": "^a"}, {"pattern": "^b"}]}),
    Case("not type", {"not": {"type": ["string", "number", "object"]}}),
    Case("not enum", {"type": "string", "not": {"enum": ["a", "x", "red"]}}),
    Case("not required", {"type": "object", "not": {"required": ["a"]}}),
    Case("not range", {"type": "integer", "not": {"minimum": 2}}),
    Case(
        "if then else",
        {
            "type": "object",
            "if": {"properties": {"a": {"const": "x"}}, "required": ["a"]},
            "then": {"required": ["b"]},
            "else": {"maxProperties": 1},
        },
        ({"a": "x", "b": 1},),
    ),
    Case("dependentRequired", {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}}, ({"b": 1},)),
    Case("dependentSchemas", {"type": "object", "dependentSchemas": {"a": {"properties": {"b": {"type": "integer"}}, "required": ["b"]}}}),
    Case("$ref", {"$defs": {"n": {"type": "integer"}}, "anyOf": [{"$ref": "#/$defs/n", "minimum": 2}, {"type": "null"}]}),
    Case("$anchor", {"$defs": {"n": {"$anchor": "here", "type": "integer"}}, "$ref": "#here"}),
    Case(
        "$ref recursive",
        {"$ref": "#/$defs/node", "$defs": {"node": _NODE}},
        ({"v": 1, "next": {"v": 2, "next": {"v": 3}}}, {"v": 1, "next": {}}),
    ),
    Case("$ref recursive anyOf", {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]}, ([[1], [[2]]], [["a"]])),
    Case("unevaluatedProperties", {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}),
)

REFUSED: tuple[tuple[Any, str], ...] = (
    ({"type": "string", "minimun": 3}, "/minimun"),
    ({"properties": {"a": {"$dynamicRef": "#x"}}}, "/properties/a/$dynamicRef"),
    ({"$ref": "https://example.com/s.json"}, "/$ref"),
    ({"$ref": "#/$defs/none"}, "/$ref"),
    ({"allOf": [{"$ref": "#"}]}, "#"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "/oneOf"),
    ({"properties": {"a": {"oneOf": [{"maxLength": 3}, {"maxLength": 2}]}}}, "/properties/a/oneOf"),
    ({"not": {"pattern": "a"}}, "/not/pattern"),
    ({"not": {"type": "integer"}}, "/not/type"),
    ({"type": "string", "pattern": "(?=a)"}, "/pattern"),
    ({"type": "string", "pattern": "a\\1"}, "/pattern"),
    ({"type": "object", "patternProperties": {"a/(": {}}}, "/patternProperties/a~1("),
    ({"type": "string", "format": "idn-email"}, "/format"),
    ({"type": "number", "multipleOf": 0.01}, "/multipleOf"),
    ({"type": "integer", "multipleOf": 123456}, "/multipleOf"),
    ({"type": "array", "uniqueItems": True, "items": {"type": "integer"}}, "/uniqueItems"),
    ({"type": "array", "contains": {}, "maxContains": 2}, "/maxContains"),
    ({"properties": {"a": {"type": "object", "minProperties": 2}}}, "/properties/a/minProperties"),
    ({"type": "object", "anyOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, "/unevaluatedProperties"),
    ({"prefixItems": [True], "contains": {"type": "string"}, "unevaluatedItems": False}, "/unevaluatedItems"),
    ({"type": "strin"}, "/type"),
    ({"minLength": -1}, "/minLength"),
    ({"required": "a"}, "/required"),
    ({"items": 3}, "/items"),
    ({"properties": {"a": {"properties": {"b": {"type": "x"}}}}}, "/properties/a/properties/b/type"),
)
