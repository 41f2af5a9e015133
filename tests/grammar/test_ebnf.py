"""Grammars in Lark: their schemas are enforced or refused like any others, and what is understood of them ends in time."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from ramet.errors import GrammarError
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import lower
from ramet.grammar.matcher import Matcher, Vocabulary

EOS, THINK = 256, 258
PIECES = (*(bytes([byte]) for byte in range(256)), b"", b"", b"", b'{"', b'": ', b"  ", b"aaaa")
COMPILER = LlguidanceCompiler(Vocabulary(PIECES, frozenset({256, 257, 258}), (EOS,), len(PIECES)))
BOOK = '{"type": "object", "properties": {"title": {"type": "string"}, "year": {"type": "integer"}}, "required": ["title"]}'


def accepts(source: str, text: str) -> bool:
    matcher = COMPILER.compile("ebnf", source).matcher()
    data = list(text.encode())
    return matcher.accept(data) == len(data) and matcher.complete


def knows(source: str, text: str) -> bool:
    """What the expression says."""
    language = lower("ebnf", source).read()
    return language.walker.matches(language.start, text.encode())


READABLE = [
    ('start: "a" b+ | C\nb: "x" | "y" b\nC: /[0-9]{2,3}/', ["ax", "ayxx", "12", "123"], ["a", "1234", "ay"]),
    ('start: [A] (B | "c"){2} d~1..2 // comment\nA: "k"i\nB: "0".."4"\n?d: "!"', ["Kc3!", "44!!", "kcc!"], ["c5!", "c!", "44!!!"]),
    ('start: head "."\nhead[lazy]: TEXT "</t>"\nTEXT: /(.|\\n)*/', ["a<</t>.", "</t>."], ["</t></t>.", "</t"]),
    ('start: (%json {\n  "enum": [1, 12]\n} | "z")\n  | /q*/', ["1", "12", "z", "", "qq"], ["2", "1q"]),
    ('start: "" | "(" start ")"', ["", "()", "((()))"], ["(", "())"]),
]
UNREADABLE = [
    'start: start "a" | "b"',
    'start: r "a"\nr: s?\ns: start | "b"',
    'start: "a" "b"\n%ignore / +/',
    "start: r\nr[max_tokens=3]: /a+/",
    "start: A\nA: /a+/ & /../",
    r"start: /\p{L}/",
]


@pytest.mark.parametrize(("source", "good", "bad"), READABLE)
def test_the_expression_and_the_grammar_decide_alike(source: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert accepts(source, text) and knows(source, text), text
    for text in bad:
        assert not accepts(source, text) and not knows(source, text), text


@pytest.mark.parametrize("source", UNREADABLE)
def test_what_is_not_understood_is_the_engines(source: str) -> None:
    assert lower("ebnf", source).language is None
    matcher = COMPILER.compile("ebnf", source).matcher(5)
    matcher.fill_mask(np.zeros(-(-len(PIECES) // 32), np.uint32))


ARITHMETIC = r"""root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
HIDDEN = """root ::= ("a" "b" "c" | "ab" "d" | "abc" "e")+
  | x # letters
  | "|"
x ::= [a-z]* "z"
"""


@pytest.mark.parametrize(
    ("source", "taken", "not_taken"),
    [
        (ARITHMETIC, ("1+2=3\n", "a*(b )= 7 \n\nx=1\n"), ("1+=2\n", "1=2")),
        (HIDDEN, ("abc", "abdabce", "abcabd", "zz", "abcz", "|"), ("ab", "abcd", "xy", "||")),
    ],
)
def test_gbnf_means_its_texts_character_by_character(source: str, taken: tuple[str, ...], not_taken: tuple[str, ...]) -> None:
    for text, expected in (*((text, True) for text in taken), *((text, False) for text in not_taken)):
        assert accepts(source, text) == knows(source, text) == expected, text


def test_white_space_that_could_go_on_for_ever_ends() -> None:
    text, complete = generate(COMPILER.compile("ebnf", ARITHMETIC).matcher(12), 12)
    assert complete and text.endswith("\n") and knows(ARITHMETIC, text)


def test_a_rule_that_is_missing_is_named_with_its_place() -> None:
    with pytest.raises(GrammarError, match="foo") as refused:
        lower("ebnf", 'root ::= "foobar"\n  | foo')
    assert refused.value.where == "line 2, column 5"


def test_gbnf_ends_in_time() -> None:
    for budget in (4, 5, 9):
        text, complete = generate(COMPILER.compile("ebnf", 'root ::= "[" ("a" | "aaaa")* "]" end\nend ::= "."').matcher(budget), budget)
        assert complete and text.startswith("[") and len(text) <= 4 * budget


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ('{"type": "array", "uniqueItems": true}', "line 2, /uniqueItems"),
        ('{"properties": {"a": {"minimun": 3}}}', "line 2, /properties/a/minimun"),
        ("false", "line 2, #"),
        ("[1]", "line 2, #"),
        ('{"x-guidance": {"lenient": true}}', "line 2, /x-guidance/lenient"),
        ('{"x-guidance": {"item_separator": ";"}}', "line 2, /x-guidance/item_separator"),
        ('{"a": }', "line 2, column 16"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_named(schema: str, where: str) -> None:
    with pytest.raises(GrammarError) as refused:
        COMPILER.compile("ebnf", f'start: "a" b\nb: %json {schema}\n')
    assert (refused.value.where, refused.value.param) == (where, "ebnf")


def test_a_schema_behind_what_cannot_be_read_is_no_way_around() -> None:
    with pytest.raises(GrammarError, match="not Lark"):
        COMPILER.compile("ebnf", 'start: ´ %json {"minimun": 3}')


def test_the_engines_complaints_keep_their_lines() -> None:
    with pytest.raises(GrammarError) as refused:
        COMPILER.compile("ebnf", 'start: %json {\n"type":\n"null"} b c\nb: "x"\nc: "y" | b nothing')
    assert (refused.value.where or "").startswith("line 5,")


@pytest.mark.parametrize(
    ("style", "good", "bad"),
    [
        ({}, '{"title":"x","year":3}', '{"title": "x"}'),
        ({"item_separator": ", ", "key_separator": ": "}, '{"title": "x", "year": 3}', '{"title":"x"}'),
        ({"whitespace_flexible": True}, '{ "title" :"x" ,\n"year": 3 }', '{"title":"x" "year":3}'),
        ({"whitespace_pattern": "[ ]?"}, '{ "title": "x"}', '{  "title": "x"}'),
    ],
)
def test_layouts(style: dict[str, Any], good: str, bad: str) -> None:
    source = f"start: %json {json.dumps({'x-guidance': style} | json.loads(BOOK))}"
    assert accepts(source, good) and knows(source, good)
    assert not accepts(source, bad) and not knows(source, bad)


def test_what_is_ignored_around_a_schema_is_not_ignored_inside() -> None:
    source = f'start: "x" %json {BOOK} "y"\n%ignore / +/'
    assert accepts(source, 'x{"title":"a"} y')
    assert not accepts(source, 'x{ "title":"a"}y')


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "source", [f'start: "<t>" R <[{THINK}]> %json {BOOK}\nR: /(.|\\n)*/', f'start: <[{THINK}]>? "say" %json {BOOK} "."']
)
def test_special_tokens_and_schemas_end_in_time(source: str, seed: int) -> None:
    for budget in (20, 24, 40):
        text, complete = generate(COMPILER.compile("ebnf", source).matcher(budget), budget, seed)
        assert complete, text
        start = text.index("{", 0 if "say" in text else text.index("THINK"))
        assert "title" in json.loads(text[start:].removesuffix("."))


def generate(matcher: Matcher, budget: int, seed: int = 0) -> tuple[str, bool]:
    """Text of `budget` tokens at most; it ends only where nothing else may come. Long tokens are preferred, as models prefer them."""
    rng, out = random.Random(seed), b""
    row = np.zeros(-(-len(PIECES) // 32), np.uint32)
    for _ in range(budget):
        matcher.fill_mask(row)
        choices = [token for token in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist() if token != EOS]
        if not choices:
            break
        token = rng.choice([token for token in choices if len(PIECES[token]) > 1] or choices)
        assert matcher.accept([token]) == 1
        out += b"THINK" if token == THINK else PIECES[token]
    return out.decode("utf-8", "replace"), matcher.complete
