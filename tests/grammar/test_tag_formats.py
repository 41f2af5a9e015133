"""Trees of formats against a reader of their own (`naive_formats`), under random tokens; what masks allow is read and closed in time."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ramet.errors import GrammarError
from ramet.grammar.lowering import lower
from tests.grammar.naive_formats import GRAMMARS, LETTERS, PATTERNS, Format, Naive, Sampler, mutated
from tests.grammar.test_budget import EOS, PIECES
from tests.grammar.test_structural_tags import BODIES, COMPILER, in_tokens

TEXTS = st.text(LETTERS, max_size=3)
MARKS = st.text(LETTERS, min_size=1, max_size=3)
EXCLUDES = st.fixed_dictionaries({}, optional={"excludes": st.lists(MARKS, max_size=2)})
FLAGS = st.fixed_dictionaries({}, optional={"at_least_one": st.booleans(), "stop_after_first": st.booleans()})


def typed(kind: str, fields: dict[str, st.SearchStrategy[Any]], *more: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Format]:
    parts = st.tuples(st.fixed_dictionaries({"type": st.just(kind), **fields}), *more)
    return parts.map(lambda found: {key: value for part in found for key, value in part.items()})


def tags(content: st.SearchStrategy[Format], begin: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[Format]:
    ends = st.one_of(TEXTS, MARKS, st.lists(MARKS, min_size=1, max_size=2))
    return typed("tag", {"begin": begin, "content": content, "end": ends})


@st.composite
def triggered(draw: st.DrawFn, content: st.SearchStrategy[Format]) -> Format:
    triggers = draw(st.lists(MARKS, min_size=1, max_size=2, unique=True).filter(lambda found: not clash(found)))
    begins = st.builds(str.__add__, st.sampled_from(triggers), TEXTS)
    listed = draw(st.lists(tags(content, begins), min_size=1, max_size=3))
    return {"type": "triggered_tags", "triggers": triggers, "tags": listed} | draw(EXCLUDES) | draw(FLAGS)


def clash(triggers: list[str]) -> bool:
    return any(one != other and one.startswith(other) for one in triggers for other in triggers)


def around(content: st.SearchStrategy[Format]) -> st.SearchStrategy[Format]:
    some = st.lists(content, min_size=1, max_size=3)
    counts = st.sampled_from([(0, 2), (1, -1), (2, 3)])
    return st.one_of(
        typed("sequence", {"elements": some}),
        typed("or", {"elements": some}),
        *(typed(kind, {"content": content}) for kind in ("optional", "star", "plus")),
        st.builds(lambda inner, bounds: {"type": "repeat", "content": inner, "min": bounds[0], "max": bounds[1]}, content, counts),
        tags(content),
        typed("tags_with_separator", {"tags": st.lists(tags(content), min_size=1, max_size=2), "separator": TEXTS}, FLAGS),
        triggered(content),
        typed(
            "dispatch",
            {"rules": st.lists(st.tuples(MARKS, content).map(list), min_size=1, max_size=2)},
            EXCLUDES,
            st.fixed_dictionaries({}, optional={"loop": st.booleans()}),
        ),
    )


LEAF = {"type": "const_string", "value": ""}
LEAVES = st.one_of(
    typed("const_string", {"value": TEXTS}),
    typed("any_text", {}, EXCLUDES, st.fixed_dictionaries({}, optional={"max_chars": st.integers(0, 3)})),
    typed("any_text", {}),
    typed("regex", {"pattern": st.sampled_from([pattern for pattern, _ in PATTERNS])}, EXCLUDES),
    typed("json_schema", {"json_schema": st.sampled_from([schema for schema, _, _ in BODIES])}),
    typed("grammar", {"grammar": st.sampled_from([source for source, _, _ in GRAMMARS])}),
)
FORMATS = st.recursive(LEAVES, around, max_leaves=5)


def source_of(tree: Format) -> str:
    return json.dumps({"type": "structural_tag", "format": tree})


NEVER_FIRST = {"type": "triggered_tags", "triggers": [">", "<>\n"], "tags": [{"type": "tag", "begin": "<>\n", "content": LEAF, "end": ""}]}
"""Its one trigger with a tag ends with another."""
AFTER = [{"type": "optional", "content": {"type": "json_schema", "json_schema": BODIES[0][0]}}, LEAF, NEVER_FIRST]
REPEATED = [{"type": "tag", "begin": "<", "content": content, "end": ""} for content in AFTER]


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@example({"type": "triggered_tags", "triggers": ["<", "1"], "tags": REPEATED}, 0)
@given(FORMATS, st.integers(0, 1 << 30))
def test_texts_are_taken_as_the_naive_reader_reads_them(tree: Format, seed: int) -> None:
    rng, sampler = random.Random(seed), Sampler(random.Random(seed))
    try:
        lowered = lower("structural_tag", source_of(tree))
        grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    except GrammarError as error:
        assert "no text" in error.message, tree
        grammar = None
    for _ in range(8):
        text = sampler.of(tree)
        for candidate in (text, mutated(rng, text)):
            expected = Naive(candidate).matches(tree)
            if grammar is None:
                assert not expected, candidate
                continue
            tokens, matcher = in_tokens(rng, candidate.encode()), grammar.matcher()
            taken = matcher.accept(tokens) == len(tokens) and matcher.complete
            assert taken == expected, (candidate, lowered.text)
            assert walker.matches(start, candidate.encode()) == expected, candidate


def tag(begin: str, content: Format, end: str | list[str]) -> Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


CITY = {
    "type": "json_schema",
    "json_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
}
NUMBER = {"type": "json_schema", "json_schema": {"type": "integer"}}
ANY_TEXT = {"type": "any_text"}
CALLS = [tag("<f=a>", CITY, "</f>"), tag("<f=b>", NUMBER, "</f>")]
TRIGGERED = {"type": "triggered_tags", "triggers": ["<f="], "tags": CALLS}
LISTED = {"type": "tags_with_separator", "tags": CALLS, "separator": ","}
ONE = "<f=b>12</f>"
PAIR = {"type": "json_schema", "json_schema": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 2}}
NESTED = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]}
CASES: list[tuple[Format, list[str], list[str]]] = [
    (
        tag("<think>", ANY_TEXT, "</think>"),
        ["<think>a<b</think>", "<think></think>"],
        ["<think></think>.", "<think>", "<think></think></think>"],
    ),
    (tag("<t>", ANY_TEXT, ["</t>", "</s>"]), ["<t>a</s>", "<t>a</t>"], ["<t>a</t>b</s>"]),
    (
        {"type": "sequence", "elements": [tag("<think>", ANY_TEXT, "</think>"), TRIGGERED]},
        ["<think>?</think>", f'<think>?</think>See <f=a>{{"city":"Köln"}}</f> and {ONE}.'],
        [f"<think>?{ONE}", "<think></think><f=c>", f"{ONE}<think></think>", '<think></think><f=a>{"city":1}</f>'],
    ),
    (TRIGGERED, ["", "<f", ONE, f"a{ONE}{ONE}b"], ["<f=", "<f=b>1.5</f>"]),
    (TRIGGERED | {"at_least_one": True}, [ONE, f"{ONE}a{ONE}b"], ["", f"a{ONE}", "<f="]),
    (TRIGGERED | {"stop_after_first": True}, ["", "a", f"a{ONE}"], [f"a{ONE}b", f"{ONE}{ONE}"]),
    (TRIGGERED | {"at_least_one": True, "stop_after_first": True}, [ONE], ["", f"a{ONE}", f"{ONE}b"]),
    (TRIGGERED | {"excludes": ["no"]}, ["n", f"o{ONE}"], ["no", f"{ONE}no", f"no{ONE}"]),
    (LISTED, ["", ONE, f"{ONE},{ONE}"], [",", f"{ONE},", f"{ONE}{ONE}", "a"]),
    (LISTED | {"at_least_one": True}, [ONE, f"{ONE},{ONE}"], [""]),
    (LISTED | {"stop_after_first": True}, ["", ONE], [f"{ONE},{ONE}"]),
    (tag("[", TRIGGERED, "]"), ["[]", f"[a{ONE}b]"], [f"[]{ONE}", f"[{ONE}", "[]]"]),
    (tag("`", ANY_TEXT, "```"), ["````", "`a``b```"], ["`a````", "````a```"]),
    (
        {"type": "triggered_tags", "triggers": ["```"], "tags": [tag("```py\n", ANY_TEXT, "```")]},
        ["See ```py\nx = 1\n``` and `y`", "```py\n```", "``"],
        ["```", "```py\nx```` ```"],
    ),
    ({"type": "dispatch", "rules": [["#", NUMBER]], "loop": False}, ["", "a#1"], ["a#1 ", "#"]),
    ({"type": "sequence", "elements": [ANY_TEXT, {"type": "const_string", "value": "END"}]}, ["END", "aEND", "ENDEND"], ["", "ENDa"]),
    ({"type": "sequence", "elements": [NUMBER, {"type": "const_string", "value": "55"}]}, ["155", "5555"], ["55", "5"]),
    ({"type": "or", "elements": [NUMBER, {"type": "const_string", "value": "12x"}]}, ["12", "12x", "-5"], ["1x"]),
    ({"type": "or", "elements": [PAIR, {"type": "const_string", "value": "[1,2"}]}, ["[1,2]", "[1,2"], ["[1,1]", "[1]"]),
    ({"type": "star", "content": {"type": "json_schema", "json_schema": NESTED}}, ["", "12[1]", "[[]][]"], ["[", "[1]]"]),
    ({"type": "or", "elements": [CITY, ANY_TEXT]}, ['{"city":"x"}', '{"city":', ""], []),
    ({"type": "any_text", "max_chars": 2, "excludes": ["é"]}, ["", "ab", "€€"], ["abc", "é"]),
    ({"type": "repeat", "min": 2, "max": 3, "content": CITY}, ['{"city":""}' * 2, '{"city":""}' * 3], ['{"city":""}', '{"city":""}' * 4]),
    ({"type": "grammar", "grammar": 'root ::= "a" x\nx ::= "b" | "(" x ")"'}, ["ab", "a((b))"], ["a(b"]),
    ({"type": "regex", "pattern": "[ab]+", "excludes": ["ba"]}, ["ab", "aabb"], ["aba", ""]),
]


@pytest.mark.parametrize(("tree", "good", "bad"), CASES, ids=lambda value: value.get("type") if isinstance(value, dict) else None)
def test_formats_mean_what_they_say(tree: Format, good: list[str], bad: list[str]) -> None:
    lowered = lower("structural_tag", source_of(tree))
    grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    for text in (*good, *bad):
        tokens, matcher = list(text.encode()), grammar.matcher()
        assert (matcher.accept(tokens) == len(tokens) and matcher.complete) == walker.matches(start, text.encode()) == (text in good), text


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tree", [case[0] for case in CASES[2:17:3]], ids=lambda tree: tree["type"])
def test_what_masks_allow_is_of_the_format_and_closed_in_time(tree: Format, seed: int) -> None:
    rng, budget = random.Random(seed), 70
    lowered = lower("structural_tag", source_of(tree))
    matcher, (walker, start, _) = COMPILER.assemble(lowered).matcher(budget), lowered.read()
    out, row, num_taken = b"", np.zeros(10, np.uint32), 0
    while num_taken < budget:
        matcher.fill_mask(row)
        allowed = [int(token) for token in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")) if token != EOS]
        if not allowed:
            break
        tokens = (matcher.forced_tokens() if rng.random() < 0.5 else []) or [rng.choice(allowed)]
        assert tokens[0] in allowed and matcher.accept(tokens) == len(tokens)
        out, num_taken = out + b"".join(PIECES[token] for token in tokens), num_taken + len(tokens)
    assert num_taken <= budget and matcher.complete and walker.matches(start, out), out


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        (1, ""),
        ({"type": "any"}, "/type"),
        ({"type": "sequence", "elements": []}, "/elements"),
        ({"type": "sequence", "elements": [ANY_TEXT, {"type": "token", "token": 7}]}, "/elements/1/type"),
        ({"type": "qwen_xml_parameter", "json_schema": {}}, "/type"),
        ({"type": "json_schema", "json_schema": {"properties": {"a": {"typ": 1}}}}, "/json_schema/properties/a/typ"),
        ({"type": "json_schema"}, "/json_schema"),
        ({"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}, "/style"),
        ({"type": "json_schema", "json_schema": {}, "any_order": True}, "/any_order"),
        ({"type": "any_text", "max_tokens": 5}, "/max_tokens"),
        ({"type": "any_text", "excludes": ["a", ""]}, "/excludes/1"),
        ({"type": "regex", "pattern": "(a"}, "/pattern, char 0"),
        ({"type": "regex", "pattern": r"(?=a)b"}, "/pattern"),
        ({"type": "grammar", "grammar": 'start: "a"'}, "/grammar"),
        ({"type": "grammar", "grammar": 'root ::= "a"\n  | b'}, "/grammar, line 2, column 5"),
        ({"type": "grammar", "grammar": 'root ::= root "a" | "b"'}, "/grammar"),
        ({"type": "repeat", "content": ANY_TEXT, "min": 3, "max": 2}, "/max"),
        ({"type": "repeat", "content": ANY_TEXT, "min": 1, "max": 1 << 40}, "/max"),
        (tag("a", ANY_TEXT, []), "/end"),
        (tag("a", ANY_TEXT, ["b", 1]), "/end/1"),  # type: ignore[list-item]
        ({"type": "tag", "begin": {"type": "token", "token": 1}, "content": ANY_TEXT, "end": ""}, "/begin"),
        ({"type": "tag", "begin": "a", "end": "b"}, "/content"),
        (TRIGGERED | {"triggers": ["<g"]}, "/tags/0/begin"),
        (TRIGGERED | {"triggers": ["<f", "<"]}, "/tags/0/begin"),
        (TRIGGERED | {"at_least": 1}, "/at_least"),
        (TRIGGERED | {"at_least_one": 1}, "/at_least_one"),
        (TRIGGERED | {"tags": [ANY_TEXT]}, "/tags/0"),
        (LISTED | {"separator": None}, "/separator"),
        ({"type": "dispatch", "rules": [["", ANY_TEXT]]}, "/rules/0"),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_place(tree: Any, where: str) -> None:
    with pytest.raises(GrammarError) as refused:
        lower("structural_tag", source_of(tree))
    assert refused.value.where == f"/format{where}" and refused.value.param == "structural_tag"
