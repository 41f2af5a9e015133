"""What the jsonschema package cannot judge: decimal multiples, formats that it checks only with others' help, other drafts' spellings."""

from __future__ import annotations

import base64
import ipaddress
import json
import math
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ramet.errors import GrammarError
from ramet.grammar.arena import Arena
from ramet.grammar.derivatives import Walker
from ramet.grammar.json_layout import Layout
from ramet.grammar.lowering import lower
from ramet.grammar.schema_lowering import lower_schema
from ramet.grammar.string_formats import FORMATS
from tests.grammar.test_json_schema import COMPILER, accepts, walk_randomly


class Texts:
    """The texts that a schema allows."""

    def __init__(self, schema: Any) -> None:
        arena = Arena()
        self._start = lower_schema(arena, Layout(arena), schema)
        self._walker = Walker(arena)

    def hold(self, text: str) -> bool:
        return self._walker.matches(self._start, text.encode())

    def hold_value(self, value: Any) -> bool:
        return self.hold(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


STEPS = {step: Texts({"type": "number", "multipleOf": json.loads(step)}) for step in ("0.01", "0.1", "0.05", "0.0001", "0.3", "0.03125")}
"""Validators that divide binary floats say that 0.07 is no multiple of 0.01. The standard is about the numbers, not about floats."""


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(STEPS)), st.integers(-3000, 3000), st.sampled_from(["0", "0.0001", "0.001", "0.01", "0.1", "1"]))
def test_multiples_are_those_of_decimal_arithmetic(step: str, times: int, off: str) -> None:
    value = Decimal(step) * times + Decimal(off)
    assert STEPS[step].hold(f"{value:f}") == (value % Decimal(step) == 0 and not (value == 0 and value.is_signed()))


BOUNDED = [{"type": "number", "minimum": low, "exclusiveMaximum": high} for low, high in ((0, 1), (-2.5, 1e300), (5, 1e17), (-1, -1e-5))]
NUMBERS = [(schema, Texts(schema)) for schema in ({"type": "number"}, {"type": "number", "exclusiveMinimum": 0}, *BOUNDED)]


@settings(deadline=None, max_examples=200)
@example(1e308, NUMBERS[0])
@example(1.78e308, NUMBERS[1])
@example(sys.float_info.max, NUMBERS[0])
@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-3, 3), st.sampled_from(NUMBERS))
def test_floats_are_taken_as_python_writes_them(value: float, numbers: tuple[dict[str, Any], Texts]) -> None:
    schema, found = numbers
    text = repr(value)
    low, high = schema.get("minimum", schema.get("exclusiveMinimum", -2e308)), schema.get("exclusiveMaximum", 2e308)
    inside = low < value < high or (value == schema.get("minimum") and value != 0)
    if inside and not 1.79e308 <= abs(value) < sys.float_info.max:
        assert found.hold(text)
    assert inside or value == 0 or not found.hold(text)


MAGNITUDES = st.builds(lambda digits, power: float(f"{digits}e{power}"), st.integers(-9999, 9999), st.integers(-330, 303))
EXTREMES = st.sampled_from([5e-324, 1e-323, 1e-6, 9.999e-5, 1e-4, 1e16, 1e-30, 1e-35, 1.5e300, sys.float_info.max, 0.0])
FLOATS = MAGNITUDES | EXTREMES | EXTREMES.map(float.__neg__)


@settings(deadline=None, max_examples=80)
@example("minimum", 1e-6, 1e-6, 0)
@example("minimum", 1e-6, 9.9e-7, 0)
@example("minimum", 1e-35, 1e-40, 0)
@example("maximum", 1e20, 1e20, 0)
@example("maximum", 1e-7, 1e-8, 0)
@example("exclusiveMaximum", -1e-7, -1e-7, 0)
@example("maximum", 1e-323, 0.0, 1)
@example("exclusiveMaximum", 5e-324, 5e-324, 0)
@given(st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), FLOATS, FLOATS, st.integers(-1, 1))
def test_a_bound_holds_for_numbers_with_exponents_too(key: str, bound: float, other: float, step: int) -> None:
    """`step`: values beside the bound, or (0) anywhere."""
    value = math.nextafter(bound, step * math.inf) if step else other
    is_within = value >= bound if "inimum" in key else value <= bound
    is_within &= value != bound or not key.startswith("exclusive")
    found = Texts({"type": "number", key: bound})
    if value != 0 and not 1.79e308 <= abs(value) < sys.float_info.max and not math.isinf(value):
        assert found.hold(repr(value)) == is_within
    text = f"{value:.25e}"
    assert math.isinf(value) or not found.hold(text) or is_within or (value == 0 and found.hold("0"))


def test_no_text_is_read_as_a_float_out_of_bounds() -> None:
    """What is too small for floats is 0 to those who read it."""
    above = Texts({"type": "number", "exclusiveMinimum": 0})
    assert above.hold("5e-324") and not any(map(above.hold, ("2e-324", "1e-329", "1e-999", "0.0", "-5e-324")))
    tiny = Texts({"type": "number", "minimum": 0, "maximum": 1e-40})
    assert all(map(tiny.hold, ("0", "0.0", "1e-40", "9e-41"))) and not any(map(tiny.hold, ("1.1e-40", "1e-39", "0.1")))


@pytest.mark.parametrize(
    "schema", [{"minimum": 1e-6, "maximum": 1e20}, {"exclusiveMinimum": 0}, {"minimum": -2e-7, "exclusiveMaximum": 3e-7}]
)
def test_numbers_with_exponents_are_what_masks_write(schema: dict[str, float]) -> None:
    lowered = lower("json_schema", json.dumps({"type": "number"} | schema))
    grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    low, high = schema.get("minimum", 5e-324), schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    for seed in range(40):
        assert low <= float(walk_randomly(grammar, walker, start, seed) or "0") <= high
    for text in ("1e-06", "2.5e-7", "9.9e-8", "1e+20", "1e20", "1e+21", "0.5", "5e-324"):
        is_float = low <= float(text) <= high and float(text) != schema.get("exclusiveMaximum")
        assert accepts(grammar, text) == is_float, text


def test_every_integer_is_a_multiple_of_a_decimal_fraction() -> None:
    found = Texts({"type": "integer", "multipleOf": 1e-8})
    assert found.hold("12391239123") and not found.hold("0.5")
    assert [Texts({"type": "integer", "multipleOf": 0.4}).hold(str(value)) for value in (1, 2, 3, 4)] == [False, True, False, True]


def test_a_decimal_multiple_is_what_masks_write() -> None:
    lowered = lower("json_schema", json.dumps({"type": "number", "multipleOf": 0.05, "minimum": 0, "maximum": 3}))
    grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    for seed in range(20):
        assert Decimal(walk_randomly(grammar, walker, start, seed) or "") % Decimal("0.05") == 0
    assert accepts(grammar, "0.15") and not accepts(grammar, "0.16")


LONG = 12345678901234567890123456789012345678


@settings(deadline=None, max_examples=60)
@example("maximum", LONG, 1, False)
@example("const", -LONG, 0, True)
@given(
    st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "const"]),
    st.sampled_from([LONG, -LONG, 10**30 + 1, -(10**30) - 1, 2**63, 10**350 + 1]),
    st.integers(-2, 2),
    st.booleans(),
)
def test_integers_are_compared_to_their_last_digit(key: str, bound: int, off: int, is_not: bool) -> None:
    schema = {"type": "integer", "not": {key: bound}} if is_not else {"type": "integer", key: bound}
    value = bound + off
    is_within = {"minimum": off >= 0, "maximum": off <= 0, "exclusiveMinimum": off > 0, "exclusiveMaximum": off < 0, "const": off == 0}[key]
    if key != "const" or abs(bound) < 10**100:
        assert Texts(schema).hold(str(value)) == (is_within != is_not)
        schema["type"] = "number"
        assert (is_within != is_not) or not Texts(schema).hold(str(value))


UNHELD = [
    ('{"maximum": 1e400}', "/maximum"),
    ('{"enum": [1, -1e400]}', "/enum/1"),
    ('{"items": {"minLength": 1e999}}', "/items/minLength"),
    ('{"multipleOf": 1e-400}', "/multipleOf"),
    ('{"minimum": NaN}', "/minimum"),
]


@pytest.mark.parametrize(("source", "where"), UNHELD)
def test_numbers_that_no_float_holds_are_refused_wherever_a_schema_stands(source: str, where: str) -> None:
    tag = f'{{"triggers": ["<f"], "structures": [{{"begin": "<f", "schema": {source}, "end": ""}}]}}'
    lark = f'start: "a"\n  %json {source}'
    placed = (("json_schema", source, where), ("ebnf", lark, f"line 2, {where}"), ("structural_tag", tag, f"/structures/0/schema{where}"))
    for kind, text, place in placed:
        with pytest.raises(GrammarError, match="floats can hold") as refused:
            lower(kind, text)
        assert (refused.value.where, refused.value.param) == (place, kind)


@pytest.mark.parametrize(
    ("kind", "source", "where"),
    [
        ("json_schema", r'{"const": ["\ud800"]}', "/const/0"),
        ("json_schema", r'{"const": {"\uDC00": 1}}', "/const"),
        ("ebnf", r'start: %json {"const": "\ud800"}', "line 1, /const"),
        ("structural_tag", r'{"triggers": ["\ud800"]}', "/triggers/0"),
    ],
)
def test_halves_of_surrogate_pairs_are_refused_with_their_place(kind: str, source: str, where: str) -> None:
    with pytest.raises(GrammarError, match="surrogate") as refused:
        lower(kind, source)
    assert refused.value.where == where


@pytest.mark.parametrize("count", ["1e30", "2147483648", "99999999999999999999"])
def test_counts_beyond_all_texts_say_nothing_or_are_refused_with_their_place(count: str) -> None:
    for key, text in (("maxLength", '"aa"'), ("maxItems", "[1,2]"), ("maxProperties", '{"a":1}')):
        assert Texts(json.loads(f'{{"{key}": {count}}}')).hold(text)
        assert not Texts(json.loads(f'{{"not": {{"{key}": {count}}}}}') | {"anyOf": [True]}).hold(text)
    assert Texts(json.loads(f'{{"contains": {{"const": 1}}, "maxContains": {count}}}')).hold("[1,1]")
    for key in ("minLength", "minItems", "minProperties", "minContains"):
        with pytest.raises(GrammarError, match="limit") as refused:
            lower("json_schema", f'{{"anyOf": [{{"{key}": {count}, "contains": true}}, {{"type": "null"}}]}}')
        assert refused.value.where == f"/anyOf/0/{key}"


@pytest.mark.parametrize("num_digits", [401, 5000])
@pytest.mark.parametrize("key", ["maximum", "const", "maxItems", "enum"])
def test_numbers_of_too_many_digits_are_refused(key: str, num_digits: int) -> None:
    number = "1" + "0" * (num_digits - 1)
    for kind, before, place in (("json_schema", "", ""), ("ebnf", "start: %json ", "line 1, ")):
        with pytest.raises(GrammarError, match="digits") as refused:
            lower(kind, f'{before}{{"items": {{"{key}": {f"[{number}]" if key == "enum" else number}}}}}')
        assert refused.value.where == f"{place}/items/{key}" + ("/0" if key == "enum" else "")


def test_past_the_last_float_there_are_integers() -> None:
    found = Texts({"type": "number", "exclusiveMinimum": sys.float_info.max})
    assert found.hold(str(int(sys.float_info.max) + 1)) and not found.hold(repr(sys.float_info.max))


# ── formats ──

EXAMPLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "idn-email": (("a.b@c.de", "анна@почта.бел"), ("a@", "a b@c.de", "ü@é@ö")),
    "name-email": (("Ann Lee <a@b.co>", "a@b.co"), ("Ann <a>",)),
    "idn-hostname": (("a-b.example", "straße.ελ", "例子.测试"), ("-a.example", "a--b", "Ä.de", "é.", "\u0301a")),
    "ipv6": (
        ("::ffff:192.168.0.1", "1:2:3:4:5:6:1.2.3.4", "1::1.2.3.4", "1:2:3::4:1.2.3.4", "1:2:3:4:5::1.2.3.4"),
        ("1:2:3:4:5:6:7:1.2.3.4", "::1.2.3.256", "1:2:3:4:5::6:1.2.3.4", "1::2::1.2.3.4"),
    ),
    "ipvanyaddress": (("127.0.0.1", "::1"), ("127.0.0.1/32",)),
    "ipv4network": (("10.0.0.1", "10.0.0.1/32"), ("10.0.0.1/24",)),
    "url": (("https://a.b/c?d#e",), ("a.b/c",)),
    "uri": (
        ("http://[::1]:80/a", "ldap://[2001:db8::7]/c?d?e", "http://a:b%20c:@d.e", "file:///a/b", "urn:a:b", "tel:+1-2;x=3", "a+b://c"),
        ("//a.b/c", "http://[1::2::3]/", "http://a b", "http://a/%zz", "http:///a", "1a://b", "http://[::1/"),
    ),
    "uri-reference": (("/a/b?c", "a/b", "#x", "", "http://a.b", "//a.b:1/?c#d"), ("a b", "\\a", "//[", "é")),
    "iri": (("http://a.b/c", "http://ünï.ßå/?∂é=π#ß", "a:é"), ("/c", "http://é ü/")),
    "iri-reference": (("//ü.é/a", "/âπ", "âπ", "#ƒ"), ("\\é", "â π")),
    "uri-template": (("/a/{b}{?c,d*}{e:3}",), ("/a/{b", "/{}")),
    "relative-json-pointer": (("0", "12#", "1/a~1b"), ("01", "/a", "1#/a", "1/~2")),
    "regex": (("^[a-z]+x?$", r"\d{0}", "a|b*", r"([abc])+\s+$", "(?:a|bc*){2}"), ("(", "a**", "[", "\\", "(a", "a)", "(*a)", "()")),
    "byte": (("", "AQ==", "AQI=", "AQID"), ("AQ=", "A", "AR==")),
    "uuid4": (("2eb8aa08-aa98-41ea-b4aa-73b441d16380",), ("2eb8aa08-aa98-11ea-b4aa-73b441d16380",)),
}
READERS: dict[str, Callable[[str], object]] = {
    "ipv6": ipaddress.IPv6Address,
    "ipvanyaddress": ipaddress.ip_address,
    "ipv4network": ipaddress.IPv4Network,
    "ipv6network": ipaddress.IPv6Network,
    "regex": re.compile,
    "byte": lambda text: base64.b64decode(text, validate=True),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_formats_take_their_examples(name: str) -> None:
    found, (taken, not_taken) = Texts({"type": "string", "format": name}), EXAMPLES[name]
    assert [text for text in taken if not found.hold_value(text)] == []
    assert [text for text in not_taken if found.hold_value(text)] == []


@pytest.mark.parametrize("name", READERS)
def test_what_a_format_writes_can_be_read(name: str) -> None:
    lowered = lower("json_schema", json.dumps({"type": "string", "format": name}))
    grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    for seed in range(12):
        text = walk_randomly(grammar, walker, start, seed)
        assert text is not None
        READERS[name](json.loads(text))  # raises where it cannot


def test_formats_of_strings_say_nothing_of_numbers() -> None:
    assert Texts({"type": ["integer", "string"], "format": "date"}).hold("12")
    assert set(EXAMPLES) <= set(FORMATS)


# ── spellings ──


@pytest.mark.parametrize(
    ("pattern", "taken", "not_taken"),
    [
        (r"^\p{Lu}\p{Letter}+$", ("Éa", "Ab"), ("ab", "A1")),
        (r"^[\P{L}_]$", ("1", "_"), ("a", "é")),
        (r"^[\w-.]+$", ("a-.b",), ("a b",)),
        (r"^\cJ\u{1F600}$", ("\n😀",), ("J",)),
        (r"^(?<first>a)$", ("a",), ("b",)),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", ("1.5", "+0", "007", "-.5"), ("", "-.", "a")),
        (r"^(?=.*[a-z])(?=.*\d)[a-z\d]{4,}$", ("abc1",), ("abcd", "1234", "a1")),
    ],
)
def test_patterns_of_ecma(pattern: str, taken: tuple[str, ...], not_taken: tuple[str, ...]) -> None:
    found = Texts({"type": "string", "pattern": pattern})
    assert [text for text in taken if not found.hold_value(text)] == []
    assert [text for text in not_taken if found.hold_value(text)] == []


def test_exclusive_bounds_of_draft_4() -> None:
    found = Texts({"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 4, "exclusiveMaximum": False})
    assert [value for value in range(7) if found.hold(str(value))] == [2, 3, 4]
    opposite = Texts({"type": "integer", "not": {"minimum": 1, "exclusiveMinimum": True}})
    assert [value for value in range(4) if opposite.hold(str(value))] == [0, 1]


def test_an_id_is_no_new_root_but_in_draft_4() -> None:
    inner = {"id": "inner.json", "definitions": {"v": {"type": "integer"}}, "$ref": "#/definitions/v"}
    schema = {"definitions": {"v": {"type": "string"}, "i": inner}, "items": {"$ref": "#/definitions/i"}}
    assert Texts(schema).hold('["a"]') and not Texts(schema).hold("[1]")
    nested = {"id": "inner.json", "definitions": {"v": {"type": "integer"}}, "items": {"$ref": "#/definitions/v"}}
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "definitions": {"v": {"type": "string"}}, "items": nested}
    assert Texts(old).hold("[[1]]") and not Texts(old).hold('[["a"]]')


def test_beside_a_reference_older_drafts_have_no_names() -> None:
    names = {"a": {"$id": "http://x/foo", "type": "string"}, "b": {"$id": "http://x/base/foo", "type": "number"}}
    schema = {"$id": "http://x/base/", "definitions": names, "items": {"$id": "http://x/", "$ref": "foo"}}
    draft_7 = Texts({"$schema": "http://json-schema.org/draft-07/schema#", **schema})
    assert draft_7.hold("[1]") and not draft_7.hold('["a"]')
    assert Texts(schema).hold('["a"]') and not Texts(schema).hold("[1]")


@pytest.mark.parametrize(
    ("draft", "schema", "where"),
    [
        ("draft-07/schema#", {"prefixItems": [{"type": "string"}], "items": {"type": "null"}}, "/prefixItems"),
        ("draft/2019-09/schema", {"prefixItems": [{"type": "string"}], "items": {"type": "null"}}, "/prefixItems"),
        ("draft-06/schema#", {"items": {"contains": {}, "minContains": 0}}, "/items/minContains"),
    ],
)
def test_what_a_draft_does_not_know_is_refused_where_it_would_say_less(draft: str, schema: dict[str, Any], where: str) -> None:
    assert Texts({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}).hold("[]")
    with pytest.raises(GrammarError) as refused:
        Texts({"$schema": f"http://json-schema.org/{draft}", **schema})
    assert refused.value.where == where


def test_nullable_is_of_openapi_and_not_of_drafts() -> None:
    schema = {"type": "string", "nullable": True}
    assert Texts(schema).hold("null")
    assert not Texts({"$schema": "http://json-schema.org/draft-07/schema#", **schema}).hold("null")


@pytest.mark.parametrize("key", ["id", "$id"])
def test_names_of_older_drafts(key: str) -> None:
    schema = {
        key: "http://x.org/root.json",
        "$ref": "root.json#/definitions/a",
        "definitions": {"a": {"$ref": "#b"}, "b": {key: "#b", "type": "null"}},
    }
    assert Texts(schema).hold("null") and not Texts(schema).hold("1")
