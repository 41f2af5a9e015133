"""Masks and matchers against Python's `re` and the jsonschema package, over a byte vocabulary and the embedded model's."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import ConfigError, GrammarError, Unsupported
from ramet.grammar.compiler import create_grammar_compiler
from ramet.grammar.matcher import CompiledGrammar, GrammarCompiler, Matcher, Vocabulary

EOS, EOS_TOO, AB, PAD = 256, 257, 258, 259
SIZE = 300  # wider than the tokens, as padded logits are
BYTES = Vocabulary(tuple([bytes([byte]) for byte in range(256)] + [b"", b"", b"ab", b""]), frozenset({EOS, EOS_TOO}), (EOS, EOS_TOO), SIZE)
PERSON = r'\{\s*"name":\s*"[^"]+",\s*"age":\s*\d+\s*\}'
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 3]}, "minItems": 1, "maxItems": 3},
        "child": {"$ref": "#/$defs/child"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"child": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}},
}


def encode_bytes(text: str) -> list[int]:
    """Longest first: "ab" is one token."""
    return [AB if piece == b"ab" else piece[0] for piece in re.findall(rb"ab|.", text.encode("utf-8"), re.DOTALL)]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return create_grammar_compiler("llguidance", BYTES, encode_bytes)


def allowed(matcher: Matcher, size: int = SIZE) -> set[int]:
    row = np.zeros((size + 31) // 32, np.uint32)
    matcher.fill_mask(row)
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def accepts(grammar: CompiledGrammar, text: str) -> bool:
    matcher = grammar.matcher()
    data = text.encode("utf-8")
    return matcher.accept(list(data)) == len(data) and matcher.complete


def random_walk(grammar: CompiledGrammar, vocabulary: Vocabulary, rng: random.Random, limit: int) -> tuple[bytes, bool]:
    """Sample from the masks: an end where it is allowed every other time, else the least blank of three tokens, so that walks finish."""
    matcher, out, eos = grammar.matcher(), b"", set(vocabulary.eos_ids)
    row = np.zeros((vocabulary.size + 31) // 32, np.uint32)
    for _ in range(limit):
        matcher.fill_mask(row)
        choices = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        ends = eos.intersection(choices[np.isin(choices, vocabulary.eos_ids)].tolist())
        assert len(choices) and ends == (eos if matcher.complete else set())
        if len(ends) == len(choices) or (ends and rng.random() < 0.5):
            return out, True
        draws = [token for token in (int(rng.choice(choices)) for _ in range(3)) if token not in eos]
        for token in sorted(draws, key=lambda index: vocabulary.token_bytes[index].isspace())[:1]:
            assert matcher.accept([token]) == 1
            out += vocabulary.token_bytes[token]
    return out, False


REGEXES = st.recursive(
    st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\s", r"\.", "{", "é", "[[&]", "b?", "(?:ab)"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("(?:{})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}", "{,2}", "{2}", "*?"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")  # "[[&]" is meant
@settings(deadline=None, max_examples=150)
@given(source=REGEXES, texts=st.lists(st.text("abc1 .{é[&\n", max_size=5), min_size=5, max_size=10))
def test_regexes_mean_what_they_mean_in_python(compiler: GrammarCompiler, source: str, texts: list[str]) -> None:
    grammar = compiler.compile("regex", source)
    for text in texts:
        assert accepts(grammar, text) == (re.fullmatch(source, text) is not None), text


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@settings(deadline=None, max_examples=60)
@given(source=REGEXES, seed=st.integers(0, 10**6))
def test_walks_through_masks_match(compiler: GrammarCompiler, source: str, seed: int) -> None:
    grammar = compiler.compile("regex", source)
    out, finished = random_walk(grammar, BYTES, random.Random(seed), 40)
    if finished:
        assert re.fullmatch(source, out.decode("utf-8"))


@settings(deadline=None, max_examples=60)
@given(source=REGEXES, text=st.text("abc1 ", max_size=4))
def test_the_mask_is_exactly_what_would_be_accepted(compiler: GrammarCompiler, source: str, text: str) -> None:
    grammar, data = compiler.compile("regex", source), list(text.encode())
    matcher = grammar.matcher()
    if matcher.accept(data) < len(data):
        return
    mask, forced = allowed(matcher), matcher.forced_tokens()
    for token in [*range(0, 256, 7), *b"abc1 .", AB, EOS, PAD]:
        other = grammar.matcher()
        other.accept(data)
        legal = other.accept([token]) == 1
        assert (token in mask) == (legal and token in (forced[:1] or [token])), token
    assert not mask & set(range(PAD, SIZE))


def test_the_missions_regex_on_random_tokens(compiler: GrammarCompiler) -> None:
    grammar, rng = compiler.compile("regex", PERSON), random.Random(1)
    walks = [random_walk(grammar, BYTES, rng, 200) for _ in range(40)]
    finished = [out.decode("utf-8") for out, done in walks if done]
    assert len(finished) >= 5
    assert all(re.fullmatch(PERSON, text) for text in finished)


def test_schema_walks_are_valid_and_compact(compiler: GrammarCompiler) -> None:
    grammar, rng = compiler.compile("json_schema", json.dumps(SCHEMA)), random.Random(2)
    walks = [random_walk(grammar, BYTES, rng, 300) for _ in range(30)]
    finished = [out.decode("utf-8") for out, done in walks if done]
    assert len(finished) >= 15
    for text in finished:
        value = json.loads(text)
        jsonschema.validate(value, SCHEMA)
        assert ": " not in text.replace(json.dumps(value["name"], ensure_ascii=False), "")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"name":"x","age":3}', True),
        ('{"name":"x","age":3,"tags":["a",3],"child":{"ok":true}}', True),
        ('{"name":"x","age":151}', False),
        ('{"name":"x"}', False),
        ('{"name":"x","age":3,"more":1}', False),
        ('{"name":"x","age":3,"tags":[]}', False),
        ('{"name":"x","age":3', False),
    ],
)
def test_schema_decides_like_jsonschema(compiler: GrammarCompiler, text: str, good: bool) -> None:
    assert accepts(compiler.compile("json_schema", json.dumps(SCHEMA)), text) is good


def test_any_json(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile("json_schema", "$$ANY$$")
    assert accepts(grammar, '[1,{"a":null}]') and not accepts(grammar, "[1,")


@pytest.mark.parametrize("source", ['start: "a" rest\nrest: /[0-9]+/ | "(" rest ")"', 'root ::= "a" rest\nrest ::= [0-9]+ | "(" rest ")"'])
def test_ebnf_as_lark_and_gbnf(compiler: GrammarCompiler, source: str) -> None:
    grammar = compiler.compile("ebnf", source)
    assert accepts(grammar, "a((12))") and not accepts(grammar, "a((12)")


def test_structural_tag(compiler: GrammarCompiler) -> None:
    structure = {"begin": "<f=add>", "schema": {"type": "integer"}, "end": "</f>"}
    grammar = compiler.compile("structural_tag", json.dumps({"triggers": ["<f="], "structures": [structure]}))
    assert accepts(grammar, "free text") and accepts(grammar, "so <f=add>12</f> and <f=add>3</f>.")
    assert not accepts(grammar, "so <f=add>x</f>") and not accepts(grammar, "so <f=sub>1</f>")


@pytest.mark.parametrize(
    ("kind", "source", "where"),
    [
        ("regex", "ab(?=c)", "char 2"),
        ("regex", "ab(?<!c)", "char 2"),
        ("regex", r"(a)\1", "char 3"),
        ("regex", r"a\bc", "char 1"),
        ("regex", "a*+", "char 1"),
        ("regex", "xa{1,2}+", "char 2"),
        ("regex", "(?>a)", "char 0"),
        ("regex", "(?m)a", "char 0"),
        ("regex", "ab(c", "char 2"),
        ("regex", "ab)c", "char 2"),
        ("regex", "{x}[z-a]", "char 3"),
        ("regex", "a[bc", "char 1"),
        ("regex", "a^b", "char 1"),
        ("regex", "[$]x$y", "char 4"),
        ("regex", "abc\\", "char 3"),
        ("regex", r"a\q", "char 1"),
        ("regex", "/\n[/\t](//b", "char 6"),
        ("json_schema", '{"a": }', "char 6"),
        ("json_schema", "[1]", "#"),
        ("json_schema", '{"type": "objekt"}', "/type"),
        ("json_schema", '{"properties": {"a/b": {"type": "int"}}}', "/properties/a~1b/type"),
        (
            "json_schema",
            '{"properties": {"l": {"items": {"anyOf": [{"type": "null"}, {"pattern": "(a"}]}}}}',
            "/properties/l/items/anyOf/1/pattern",
        ),
        ("json_schema", '{"$defs": {"x": {"type": "y"}}, "properties": {"p": {"$ref": "#/$defs/x"}}}', "/$defs/x/type"),
        ("ebnf", 'start: "a" b', "line 1, column 8"),
        ("ebnf", 'start: "a" b\nb: /(/', "line 2, column 4, char 0"),
        ("ebnf", "root ::= [", "line 1"),
        ("structural_tag", "{", "#"),
        ("structural_tag", '{"triggers": ["<f"], "structures": [{"begin": "<g"}]}', "/structures/0/begin"),
    ],
)
def test_errors_name_the_place(compiler: GrammarCompiler, kind: str, source: str, where: str) -> None:
    with pytest.raises(GrammarError) as refused:
        compiler.compile(kind, source)
    assert refused.value.where == where
    assert refused.value.param == kind


@pytest.mark.parametrize("source", [r"[^\s\S]", r"a[^\w\W]b"])
def test_a_grammar_that_nothing_satisfies_is_refused(compiler: GrammarCompiler, source: str) -> None:
    with pytest.raises(GrammarError, match="no text at all"):
        compiler.compile("regex", source)


def test_several_eos_and_the_states_of_the_end(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile("regex", "abc?").matcher()
    assert not matcher.complete and allowed(matcher) == {AB}  # forced: written as the tokenizer does
    assert matcher.accept([AB]) == 1
    assert matcher.complete and not matcher.stopped
    assert allowed(matcher) == {ord("c"), EOS, EOS_TOO}
    assert matcher.accept([ord("c")]) == 1
    assert matcher.complete and matcher.stopped
    assert allowed(matcher) == {EOS, EOS_TOO}
    assert matcher.accept([EOS_TOO, EOS]) == 1
    matcher.rollback(2)
    assert allowed(matcher) == {ord("c"), EOS, EOS_TOO}


def test_accept_counts_and_a_refused_token_changes_nothing(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile("regex", "abc").matcher()
    assert matcher.accept([ord("a"), ord("b"), ord("x"), ord("c")]) == 2
    assert allowed(matcher) == {ord("c")}


@settings(deadline=None, max_examples=60)
@given(text=st.from_regex(r"\A[ab]{1,6}c?\Z"), back=st.integers(0, 6))
def test_rollback_gives_the_same_masks(compiler: GrammarCompiler, text: str, back: int) -> None:
    grammar, data = compiler.compile("regex", "[ab]{1,6}c?"), list(text.encode())
    matcher = grammar.matcher()
    masks = [allowed(matcher)]
    for byte in data:
        matcher.accept([byte])
        masks.append(allowed(matcher))
    back = min(back, len(data))
    matcher.rollback(back)
    assert allowed(matcher) == masks[len(data) - back]


def test_eos_can_be_rolled_back(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile("regex", "ab?").matcher()
    assert matcher.accept([ord("a"), EOS_TOO]) == 2
    assert matcher.stopped and matcher.complete
    matcher.rollback(1)
    assert not matcher.stopped and allowed(matcher) == {ord("b"), EOS, EOS_TOO}


def test_matchers_of_one_grammar_are_independent(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile("regex", "(ab|cd)e")
    one, two = grammar.matcher(), grammar.matcher()
    one.accept([ord("c")])
    assert allowed(one) == {ord("d")}
    assert allowed(two) == {ord("a"), AB, ord("c")}


def test_forced_tokens_are_the_tokenizers_own(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile("regex", "xabab[01]").matcher()
    assert matcher.forced_tokens() == [ord("x"), AB, AB]
    assert matcher.accept(matcher.forced_tokens()) == 3
    assert matcher.forced_tokens() == []
    assert create_grammar_compiler("llguidance", BYTES).compile("regex", "xab[01]").matcher().forced_tokens() == []


@pytest.mark.parametrize("name", ["d", "D", "w", "W", "s", "S"])
def test_classes_hold_what_they_hold_in_python(compiler: GrammarCompiler, name: str) -> None:
    outside, inside = compiler.compile("regex", f"\\{name}"), compiler.compile("regex", f"[^_\\{name}]")
    codes = [*range(0x400), *range(0x400, 0x11000, 97), 0x1E4F0, 0x10D40, 0x323AF, 0x2028, 0x85]  # two digits of Unicode 15 and 16
    for char in (chr(code) for code in codes if not 0xD800 <= code < 0xE000):
        assert accepts(outside, char) == bool(re.fullmatch(f"\\{name}", char)), hex(ord(char))
        assert accepts(inside, char) == bool(re.fullmatch(f"[^_\\{name}]", char)), hex(ord(char))


def test_special_tokens_are_never_text(compiler: GrammarCompiler) -> None:
    assert allowed(compiler.compile("regex", "(?s).+").matcher()) == {*range(256), AB} - set(range(0x80, 0xC2)) - set(range(0xF5, 0x100))


def test_tokens_beyond_the_logits_are_never_used() -> None:
    narrow = Vocabulary((*(bytes([byte]) for byte in range(256)), b"", b"xab"), frozenset({256}), (256, 300), 257)
    matcher = create_grammar_compiler("llguidance", narrow, lambda text: [257] if text == "xab" else encode_bytes(text)).compile(
        "regex", "xab"
    )
    assert allowed(matcher.matcher(), 257) == {ord("x")}


def test_backends_by_name() -> None:
    with pytest.raises(Unsupported, match="grammar-backend"):
        create_grammar_compiler("none", BYTES).compile("regex", "a")
    with pytest.raises(ConfigError, match="xgrammar"):
        create_grammar_compiler("xgrammar", BYTES)
    with pytest.raises(Unsupported, match="ends the text"):
        create_grammar_compiler("llguidance", Vocabulary((b"a",), frozenset(), (), 1))
    with pytest.raises(Unsupported, match="kind 'yaml'"):
        create_grammar_compiler("llguidance", BYTES).compile("yaml", "a")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[GrammarCompiler, Vocabulary, Any]:
    from ramet.runtime.model_files import locate_model
    from ramet.runtime.text.tokenizer import load_tokenizer

    cache: Path = tmp_path_factory.mktemp("cache")
    tokenizer = load_tokenizer(locate_model(None), cache_dir=cache)
    vocabulary = Vocabulary(tokenizer.token_bytes(), tokenizer.special_ids, tokenizer.eos_token_ids, 49152)
    return create_grammar_compiler("llguidance", vocabulary, tokenizer.encode_continuation), vocabulary, tokenizer


@pytest.mark.model
def test_the_missions_regex_on_the_real_vocabulary(real: tuple[GrammarCompiler, Vocabulary, Any]) -> None:
    compiler, vocabulary, _ = real
    grammar, rng = compiler.compile("regex", PERSON), random.Random(3)
    walks = [random_walk(grammar, vocabulary, rng, 500) for _ in range(12)]
    finished = [out.decode("utf-8") for out, done in walks if done]
    assert len(finished) >= 4
    assert all(re.fullmatch(PERSON, text) for text in finished)


@pytest.mark.model
def test_a_schema_on_the_real_vocabulary(real: tuple[GrammarCompiler, Vocabulary, Any]) -> None:
    compiler, vocabulary, _ = real
    grammar, rng = compiler.compile("json_schema", json.dumps(SCHEMA)), random.Random(4)
    walks = [random_walk(grammar, vocabulary, rng, 120) for _ in range(15)]
    finished = [out.decode("utf-8") for out, done in walks if done]
    assert len(finished) >= 8
    for text in finished:
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.model
def test_forced_tokens_are_canonical(real: tuple[GrammarCompiler, Vocabulary, Any]) -> None:
    compiler, _, tokenizer = real
    matcher = compiler.compile("regex", r"The capital of France is [A-Z]\w+\.").matcher()
    forced = matcher.forced_tokens()
    assert forced and forced == tokenizer.encode("The capital of France is")[: len(forced)]
    assert matcher.accept(forced) == len(forced)


@pytest.mark.model
def test_a_special_token_spelled_out_is_text(real: tuple[GrammarCompiler, Vocabulary, Any]) -> None:
    compiler, vocabulary, _ = real
    matcher = compiler.compile("regex", r"<\|im_end\|>x").matcher()
    assert not set(matcher.forced_tokens()) & vocabulary.special_ids
    assert not allowed(matcher, vocabulary.size) & vocabulary.special_ids
