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
    Case("a bound of minus zero", {"type": "number", "maximum": -0.0}),
    Case("bounds without type", {"minimum": 1, "maximum": 3}),
    Case("multipleOf", {"type": "integer", "multipleOf": 7}, (7, 8, 14, -21, 700, 701)),
    Case("multipleOf in bounds", {"type": "integer", "multipleOf": 5, "minimum": 10, "maximum": 40}, (15, 45, 40, 12)),
    Case("multipleOf 0.5", {"type": "number", "multipleOf": 0.5}, (2.5, 2.25, 7.0, -3.5)),
    Case("minLength maxLength", {"type": "string", "minLength": 1, "maxLength": 2}, ("é" * 2, "é" * 3, "\n\n", "😀😀")),
    Case("no length at all", {"type": ["string", "null"], "minLength": 5, "maxLength": 2}, ("abcdef",)),
    Case("pattern", {"type": "string", "pattern": "b[0-9]"}, ("ab1c", "ab", "b\n1")),
    Case("pattern anchored", {"type": "string", "pattern": "^[a-z]+$"}, ("A", "abz", 'a"')),
    Case("pattern and length", {"type": "string", "pattern": "^a", "minLength": 2, "maxLength": 3}, ("abcd",)),
    Case("pattern alternatives", {"pattern": "^a|b$"}, ("xb", "ax", "bx")),
    Case("pattern looks ahead", {"pattern": "^(?!a|.*ba)(?=.*[ab])[a-z]+$|^(?:(?!xb)[^q])*$"}, ("ba", "bab", "xb", "x1", "bbc", "b")),
    Case("pattern looks ahead anywhere", {"type": "string", "pattern": "(?:b|a(?!b))(?=.$)"}, ("aab", "abb", "abc", "cab", "bb")),
    Case("not a pattern that looks ahead", {"type": "string", "not": {"pattern": "^(?!a)"}}),
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
    Case(
        "patternProperties beside the empty name",
        {
            "type": "object",
            "properties": {"": {"type": "string"}},
            "patternProperties": {"^x": {"type": "integer"}},
            "additionalProperties": False,
        },
        ({"": "a"}, {"": 1}, {"": "", "x": 1}, {"xx": 1}, {"xx": "a"}),
    ),
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
    # alternatives that overlap
    Case("oneOf overlapping types", {"oneOf": [{"type": "integer"}, {"minimum": 2}]}, (1, 1.5, 2.5, 3, 0.5)),
    Case("oneOf overlapping lengths", {"type": "string", "oneOf": [{"maxLength": 2}, {"minLength": 2}]}, ("ab", "abc", "a")),
    Case("oneOf of three", {"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}, {"type": "string"}]}, (6, 2, 3, 12, 9, 1.5)),
    Case("oneOf overlapping patterns", {"type": "string", "oneOf": [{"pattern": "^a"}, {"pattern": "b$"}]}, ("ab", "aab", "a", "b", "cb")),
    Case("oneOf required", {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, ({"b": None}, {"c": 1})),
    Case(
        "oneOf closed objects",
        {
            "oneOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"], "additionalProperties": False},
                {"type": "object", "properties": {"a": {}, "c": {}}, "required": ["a"], "additionalProperties": False},
            ]
        },
        ({"a": 1, "c": 2}, {"a": "x", "b": 1}, {"a": "x"}),
    ),
    Case(
        "oneOf open objects", {"oneOf": [_OPEN, {"additionalProperties": {"type": "string"}}]}, ({"a": 1, "z": 1}, {"z": "s"}, {"a": "s"})
    ),
    Case("oneOf of itself", {"oneOf": [{"type": "null"}, True]}),
    Case("oneOf nested", {"oneOf": [{"oneOf": [{"type": "integer"}, {"minimum": 1}]}, {"maximum": 2}]}, (0.5, 1.5, 2.5)),
    # what is not
    Case("not integer", {"not": {"type": "integer"}}, (1.5, 0.0625, -3)),
    Case("not multipleOf", {"type": "number", "not": {"multipleOf": 1.5}}, (1.5, 3, 4.5, 1.25, 4, 0)),
    Case("not pattern", {"not": {"pattern": "^a+$"}}, ("a", "aa", "b", "ab")),
    Case("not const of a container", {"not": {"enum": [[1, "a"], {"a": 1}, 2, "x"]}}, ([1, "a", 2], {"a": 1, "z": 2}, {"z": 1})),
    Case("not items", {"type": "array", "not": {"items": {"type": "integer"}}}, ([1.5], [1, "a"])),
    Case("not prefixItems", {"type": "array", "not": {"prefixItems": [{"type": "integer"}, {"const": 2}], "items": False}}, ([1, 3],)),
    Case("not contains", {"type": "array", "not": {"contains": {"const": "a"}}}),
    Case("not properties", {"not": {"properties": {"a": {"type": "integer"}}}}, ({"a": 1.5}, {"a": None, "b": 1})),
    Case("not additionalProperties", {"type": "object", "not": {**_OPEN, "additionalProperties": False}}, ({"z": 1}, {"a": 1, "z": 1})),
    Case(
        "not patternProperties",
        {"type": "object", "not": {"patternProperties": {"^x": {"type": "integer"}}}},
        ({"x": "a"}, {"x": 1, "xx": None}),
    ),
    Case("not propertyNames", {"type": "object", "not": {"propertyNames": {"maxLength": 1}}}, ({"ab": 1}, {"kind": 1, "a": 1})),
    Case("not anyOf", {"not": {"anyOf": [{"type": "string"}, {"type": "number", "minimum": 2}, {"type": "object", "required": ["a"]}]}}),
    Case("not oneOf", {"not": {"oneOf": [{"minimum": 2}, {"maximum": 3}, {"type": "null"}]}}, (2.5,)),
    Case("not not", {"not": {"not": {"type": "string", "minLength": 1}}}),
    Case("not if", {"not": {"if": {"type": "integer"}, "then": {"minimum": 2}, "else": {"type": "string"}}}),
    Case("not a reference", {"$defs": {"s": {"type": "object", "required": ["a"]}}, "not": {"$ref": "#/$defs/s"}}),
    Case(
        "not recursive",
        {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "type": "array", "not": {"$ref": "#/$defs/t"}},
        ([[]], [[], [1]], [[[]], ["x"]]),
    ),
    Case("if without type", {"if": {"multipleOf": 2}, "then": {"minimum": 4}, "else": {"maxLength": 1}}, (4, 6, 7)),
    Case("if pattern", {"type": "string", "if": {"pattern": "^a"}, "then": {"minLength": 2}, "else": {"pattern": "1$"}}, ("b1", "b2")),
    # arrays
    Case("maxContains", {"type": "array", "contains": {"type": "string"}, "maxContains": 1}, (["a", 1], [1, "a", "b"])),
    Case("minContains 0", {"type": "array", "contains": {"type": "string"}, "minContains": 0, "maxContains": 1}),
    Case("several contains", {"allOf": [{"contains": {"type": "integer"}}, {"contains": {"minimum": 2}}]}, ([1, 2.5], [1], [2.5])),
    # what an object or array may hold depends on what it holds already
    Case("uniqueItems of strings", {"type": "array", "items": {"type": "string"}, "uniqueItems": True}, (["a", "b", "a"], ["b", "a"])),
    Case(
        "uniqueItems of integers",
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 2},
        ([1, 12, 1], [1, 12]),
    ),
    Case(
        "uniqueItems of anything",
        {"uniqueItems": True},
        ([1, True], [[1], [True]], [[1], [1]], [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [0, False]),
    ),
    Case("uniqueItems of numbers", {"items": {"type": "number"}, "uniqueItems": True}, ([1.5, 2.5], [0.5, 0.25, 0.5], [-1, 1])),
    Case(
        "uniqueItems of objects",
        {
            "type": "array",
            "items": {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}}, "additionalProperties": False},
            "uniqueItems": True,
            "minItems": 2,
        },
        ([{"a": "x"}, {"a": "y"}], [{"a": "x"}, {"a": "x"}], [{}, {"b": True}, {}], [{}, {"b": True}, {"b": False}]),
    ),
    Case(
        "uniqueItems of many values",
        {"items": {"enum": [*range(40), "a", "b"]}, "uniqueItems": True, "minItems": 1},
        (["b", "a"], [7, 31, 7]),
    ),
    Case(
        "uniqueItems within uniqueItems",
        {"items": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems": True},
        ([[1, 2], [2, 1]], [[1, 2], [1, 2]], [[1, 1]], [[], [1], []]),
    ),
    Case(
        "uniqueItems in one alternative",
        {"anyOf": [{"items": {"type": "string"}, "uniqueItems": True}, {"items": {"type": "string"}, "minItems": 3}], "type": "array"},
        (["a", "b", "a"], ["a", "b"], ["b", "b"]),
    ),
    Case(
        "minProperties of names not declared", {"type": "object", "minProperties": 2}, ({"x": 1, "y": 2}, {"x": 1, "y": {"x": 1, "b": 2}})
    ),
    Case(
        "minProperties and patternProperties",
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "patternProperties": {"^x": {"type": "integer"}},
            "additionalProperties": {"type": "string"},
            "minProperties": 3,
            "maxProperties": 4,
        },
        (
            {"a": 1, "x": 2, "xy": 3},
            {"a": 1, "x": 2, "y": 3},
            {"x": 1, "y": "b", "z": ""},
            {"a": 1, "x": 1, "y": "", "z": "", "w": ""},
            {"a": 1, "y": ""},
        ),
    ),
    Case(
        "minProperties and propertyNames",
        {"type": "object", "propertyNames": {"pattern": "^[a-z]$"}, "minProperties": 2},
        ({"a": 1, "x": 2}, {"a": 1, "A": 2}),
    ),
    Case(
        "uniqueItems of a range",
        {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 3}, "uniqueItems": True},
        ([3, 1, 2], [2, 2]),
    ),
    Case(
        "uniqueItems of many, few at a time",
        {"type": "array", "items": {"enum": list(range(1, 30))}, "uniqueItems": True, "maxItems": 2},
        ([29, 1], [7, 7]),
    ),
    Case(
        "uniqueItems by place",
        {"prefixItems": [{"enum": ["a", "b"]}, {"enum": [1, "a"]}], "items": {"type": "boolean"}, "uniqueItems": True, "type": "array"},
        (["a", "a"], ["b", "a", True], ["a", 1, True, True]),
    ),
    Case(
        "unevaluatedItems",
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}],
            "allOf": [{"prefixItems": [True, {"type": "string"}]}],
            "unevaluatedItems": False,
        },
        ([1, "a"], [1, "a", 1]),
    ),
    Case(
        "unevaluatedItems and contains",
        {"type": "array", "prefixItems": [True], "contains": {"type": "string"}, "unevaluatedItems": False},
        ([1, "a"], ["a", "b"], ["a", 1]),
    ),
    # objects
    Case(
        "unevaluatedProperties and anyOf",
        {"type": "object", "anyOf": [_OPEN, {"properties": {"b": {"type": "string"}}, "required": ["b"]}], "unevaluatedProperties": False},
        ({"a": "x", "b": "y"}, {"a": 1, "b": "y"}, {"b": "y"}, {"a": 1, "z": 1}),
    ),
    Case(
        "unevaluatedProperties and if",
        {
            "type": "object",
            "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
            "then": {"properties": {"b": {}}},
            "else": {"properties": {"c": {}}},
            "unevaluatedProperties": {"type": "null"},
        },
        ({"a": 1, "b": 2, "z": None}, {"a": 2}, {"c": 1}, {"c": 1, "z": None}),
    ),
    Case(
        "unevaluatedProperties and oneOf",
        {"type": "object", "oneOf": [_CAT, _DOG], "unevaluatedProperties": False},
        ({"kind": "dog", "name": "rex"}, {"kind": "dog", "lives": 9}),
    ),
    Case(
        "unevaluatedProperties and dependentSchemas",
        {
            "type": "object",
            "dependentSchemas": {"a": {"properties": {"a": {}, "b": {}}}},
            "properties": {"c": {}},
            "unevaluatedProperties": False,
        },
        ({"c": 1}, {"a": 1, "b": 2}, {"b": 2}),
    ),
    Case(
        "unevaluatedProperties and $ref",
        {"$defs": {"n": _OPEN}, "$ref": "#/$defs/n", "type": "object", "unevaluatedProperties": False},
        ({"a": 1}, {"z": 1}),
    ),
    Case(
        "propertyNames enum and minProperties",
        {"type": "object", "propertyNames": {"enum": ["a", "b", "c"]}, "minProperties": 2},
        ({"a": 1, "c": None},),
    ),
    # references
    Case("$dynamicRef", {"$dynamicAnchor": "node", "type": ["array", "null"], "items": {"$dynamicRef": "#node"}}, ([[None], []], [[1]])),
    Case(
        "$id inside",
        {
            "$id": "https://example.com/root.json",
            "$defs": {"n": {"$id": "parts/n.json", "$anchor": "x", "type": "integer"}},
            "anyOf": [{"$ref": "parts/n.json"}, {"$ref": "https://example.com/parts/n.json#x"}, {"type": "null"}],
        },
    ),
    Case(
        "$ref inside of an $id",
        {
            "$defs": {
                "n": {"$id": "http://example.com/n", "$defs": {"m": {"type": "string"}}, "items": {"$ref": "#/$defs/m"}, "type": "array"}
            },
            "$ref": "http://example.com/n",
        },
    ),
)

REFUSED: tuple[tuple[Any, str], ...] = (
    ({"type": "string", "minimun": 3}, "/minimun"),
    ({"$ref": "https://example.com/s.json"}, "/$ref"),
    ({"$ref": "#/$defs/none"}, "/$ref"),
    ({"allOf": [{"$ref": "#"}]}, "#"),
    ({"type": "string", "pattern": "(?:a(?=b))+c"}, "/pattern"),
    ({"type": "string", "pattern": "(?<=a)b"}, "/pattern"),
    ({"type": "string", "pattern": "\\p{Greek}"}, "/pattern"),
    ({"type": "string", "pattern": "(?i:^a)"}, "/pattern"),
    ({"type": "string", "pattern": "a\\1"}, "/pattern"),
    ({"type": "object", "patternProperties": {"a/(": {}}}, "/patternProperties/a~1("),
    ({"type": "string", "format": "phone"}, "/format"),
    ({"type": "integer", "format": "int12"}, "/format"),
    ({"type": "integer", "exclusiveMinimum": True}, "/exclusiveMinimum"),
    ({"type": "integer", "multipleOf": 123456}, "/multipleOf"),
    ({"type": "array", "uniqueItems": True, "prefixItems": [{"type": "string"}]}, "/uniqueItems"),
    ({"properties": {"a": {"type": "array", "uniqueItems": True, "minItems": 1000}}}, "/properties/a/uniqueItems"),
    ({"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "uniqueItems": True}}}, "/$defs/t/uniqueItems"),
    ({"properties": {"a": {"type": "object", "minProperties": 65}}}, "/properties/a/minProperties"),
    ({"type": "object", "minProperties": 2, "not": {"additionalProperties": {"type": "string"}}}, "/minProperties"),
    ({"oneOf": [{"type": "string", "format": "date"}, {"type": "string"}]}, "/oneOf"),
    ({"not": {"format": "date"}}, "/not/format"),
    ({"not": {"uniqueItems": True}}, "/not/uniqueItems"),
    ({"not": {"unevaluatedProperties": False}}, "/not/unevaluatedProperties"),
    ({"properties": {"a": {"$dynamicRef": "#x"}}}, "/properties/a/$dynamicRef"),
    (
        {"$dynamicAnchor": "n", "items": {"$dynamicRef": "#n"}, "$defs": {"x": {"$id": "http://x", "$dynamicAnchor": "n"}}},
        "/items/$dynamicRef",
    ),
    ({"type": "object", "const": {"a": 1}, "unevaluatedProperties": False}, "/unevaluatedProperties"),
    ({"type": "array", "uniqueItems": True, "contains": {"const": 1}}, "/uniqueItems"),
    ({"$recursiveRef": "#"}, "/$recursiveRef"),
    ({"type": "strin"}, "/type"),
    ({"minLength": -1}, "/minLength"),
    ({"required": "a"}, "/required"),
    ({"dependentRequired": {"a/b": [{}]}}, "/dependentRequired/a~1b"),
    ({"dependencies": {"a": [1]}}, "/dependencies/a"),
    ({"dependentSchemas": {"a": ["b"]}}, "/dependentSchemas/a"),
    ({"items": 3}, "/items"),
    ({"properties": {"a": {"properties": {"b": {"type": "x"}}}}}, "/properties/a/properties/b/type"),
)
