"""Grammars on llguidance: an Earley parser over derivative-based lexers, which computes the mask of a step in tens of microseconds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from ramet.errors import GrammarError, Unsupported
from ramet.grammar.matcher import CompiledGrammar, Matcher, Vocabulary
from ramet.grammar.regex_dialect import Translation, refuse, translate
from ramet.grammar.schema_errors import blame
from ramet.grammar.structural_tags import to_lark

JSON_DEFAULTS: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
"""Compact JSON: no token is spent on layout. A schema may ask for other ("x-guidance")."""
ANY_JSON = "$$ANY$$"
"""As a json_schema: any JSON value."""
Encode = Callable[[str], Sequence[int]]


class LlguidanceCompiler:
    """Implements `GrammarCompiler`. Building it takes a pass over the vocabulary (0.1 s per 100k tokens); compiling mostly milliseconds."""

    def __init__(self, vocabulary: Vocabulary, encode: Encode | None = None) -> None:
        self._eos_ids = frozenset(index for index in vocabulary.eos_ids if index < vocabulary.size)
        if not self._eos_ids:
            raise Unsupported("constraints need a token that ends the text, and this model's tokenizer names none")
        self._canonical = encode is not None
        wrapper = TokenizerWrapper(_VocabularyTokenizer(vocabulary, self._eos_ids, encode))
        self._tokenizer = LLTokenizer(wrapper, eos_token=sorted(self._eos_ids))

    def compile(self, kind: str, source: str) -> CompiledGrammar:
        """Kinds: regex (see `regex_dialect`), json_schema (text of an object), ebnf (Lark, or GBNF with `root ::=`), structural_tag."""
        builders = {"regex": self._regex, "json_schema": self._json_schema, "ebnf": self._ebnf, "structural_tag": self._structural_tag}
        if kind not in builders:
            raise Unsupported(f"grammars of kind {kind!r} are not supported; known: {', '.join(builders)}", param=kind)
        matcher = builders[kind](source)
        matcher.compute_bitmask()  # builds the first lexer states here rather than in every copy, and finds dead ends
        if matcher.is_stopped() and not matcher.is_accepting():
            raise GrammarError(f"{kind}: no text at all satisfies it", param=kind)
        return _Compiled(matcher, self._eos_ids, self._canonical)

    def _regex(self, source: str) -> LLMatcher:
        translation = translate(source)
        matcher = self._build(LLMatcher.grammar_from_regex(translation.text))
        if matcher.is_error():
            _refuse_regex(matcher.get_error(), translation)
        return matcher

    def _json_schema(self, source: str) -> LLMatcher:
        schema = {} if source.strip() == ANY_JSON else _parse_schema(source)
        matcher = self._build(_schema_grammar(schema))
        if matcher.is_error():
            where = blame(schema, self._why_refused)
            raise GrammarError(f"json_schema: {_first_line(matcher.get_error())}", where=where or "#", param="json_schema")
        return matcher

    def _why_refused(self, schema: Any) -> str | None:
        matcher = self._build(_schema_grammar(schema))
        return _first_line(matcher.get_error()) if matcher.is_error() else None

    def _ebnf(self, source: str) -> LLMatcher:
        try:
            lark = any_to_lark(source)
        except GbnfToLarkError as error:
            line = error.pos.text.count("\n", 0, error.pos.pos) + 1
            raise GrammarError(f"ebnf: {_first_line(str(error))}", where=f"line {line}", param="ebnf") from error
        except Exception as error:  # for a missing rule the converter raises nothing narrower
            raise GrammarError(f"ebnf: {_first_line(str(error))}", param="ebnf") from error
        return self._lark(lark, "ebnf")

    def _structural_tag(self, source: str) -> LLMatcher:
        return self._lark(to_lark(source), "structural_tag")

    def _lark(self, lark: str, param: str) -> LLMatcher:
        matcher = self._build(LLMatcher.grammar_from_lark(lark))
        if matcher.is_error():
            message = matcher.get_error()
            place = re.match(r"at (\d+)\((\d+)\): ", message)
            where = f"line {place[1]}, column {place[2]}" if place and param == "ebnf" else None
            raise GrammarError(f"{param}: {_first_line(message[place.end() if place else 0 :])}", where=where, param=param)
        return matcher

    def _build(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0)


class _Compiled:
    def __init__(self, prototype: LLMatcher, eos_ids: frozenset[int], canonical: bool) -> None:
        self._prototype = prototype
        self._eos_ids = eos_ids
        self._canonical = canonical

    def matcher(self) -> Matcher:
        return _Matcher(self._prototype.deep_copy(), self._eos_ids, self._canonical)


class _Matcher:
    """Implements `Matcher`. An EOS token counts as an accepted token, and can be rolled back like any other. Where the grammar forces the
    next token, the mask allows only that one, as the tokenizer writes it: with and without jump-forward the tokens are the same."""

    def __init__(self, matcher: LLMatcher, eos_ids: frozenset[int], canonical: bool) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids
        self._canonical = canonical
        self._ended = False  # an EOS was accepted after the grammar had already stopped by itself

    def accept(self, token_ids: Sequence[int]) -> int:
        if self._ended:
            return 0
        accepted: int = self._matcher.try_consume_tokens(list(token_ids))
        if accepted < len(token_ids) and token_ids[accepted] in self._eos_ids and self._stopped_by_itself():
            self._ended = True
            accepted += 1
        return accepted

    def _stopped_by_itself(self) -> bool:
        return self.stopped and self._matcher.is_accepting() and self._matcher.stop_reason() != "EndOfSentence"

    def rollback(self, num_tokens: int) -> None:
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens and not self._matcher.rollback(num_tokens):
            raise ValueError(f"cannot take back {num_tokens} tokens: {_first_line(self._matcher.get_error())}")

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        assert row.flags["C_CONTIGUOUS"] and row.dtype == np.uint32, "a mask row is contiguous uint32"
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():
            raise GrammarError(f"the grammar grew too complex while generating: {_first_line(self._matcher.get_error())}")
        if self._matcher.is_stopped() and not self.complete:
            raise GrammarError("the grammar came to a place where nothing may follow and the text is not complete")

    def forced_tokens(self) -> list[int]:
        forced: list[int] = self._matcher.compute_ff_tokens() if self._canonical and not self.stopped else []
        return forced

    @property
    def complete(self) -> bool:
        accepting: bool = self._matcher.is_accepting() or self._matcher.stop_reason() == "EndOfSentence"
        return accepting

    @property
    def stopped(self) -> bool:
        stopped: bool = self._matcher.is_stopped()
        return stopped


class _VocabularyTokenizer:
    """What llguidance asks of a tokenizer, exactly as wide as the logits. Ids that stand for no bytes become special tokens, which no
    grammar text can match."""

    def __init__(self, vocabulary: Vocabulary, eos_ids: frozenset[int], encode: Encode | None) -> None:
        known = vocabulary.token_bytes[: vocabulary.size]
        pieces = [*known, *[b""] * (vocabulary.size - len(known))]
        closed = vocabulary.special_ids | eos_ids
        special = {index for index, piece in enumerate(pieces) if not piece or index in closed}
        self.eos_token_id = min(eos_ids)
        self.bos_token_id = None
        self.special_token_ids = sorted(special)
        self.tokens = [b"<|special %d|>" % index if index in special else piece for index, piece in enumerate(pieces)]
        self._encode = encode
        self._id_of = {piece: index for index, piece in enumerate(self.tokens) if index not in special}
        self._longest = max(map(len, self._id_of), default=1)

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("this tokenizer reads str")  # llguidance tries bytes first
        ids = list(self._encode(text)) if self._encode else []
        whole = text.encode("utf-8")
        faithful = all(index < len(self.tokens) for index in ids) and b"".join([self.tokens[index] for index in ids]) == whole
        return ids if faithful else self._greedy(whole)

    def _greedy(self, text: bytes) -> list[int]:
        """Longest token first: for text that the tokenizer itself would write otherwise (special tokens spelled out)."""
        ids: list[int] = []
        at = 0
        while at < len(text):
            piece = next((text[at : at + n] for n in range(self._longest, 0, -1) if text[at : at + n] in self._id_of), None)
            if piece is None:
                return ids  # a byte without a token: llguidance treats the rest as not forced
            ids.append(self._id_of[piece])
            at += len(piece)
        return ids


def _parse_schema(source: str) -> Any:
    try:
        schema = json.loads(source)
    except json.JSONDecodeError as error:
        raise GrammarError(f"json_schema is not JSON: {error.msg}", where=f"char {error.pos}", param="json_schema") from error
    if not isinstance(schema, dict):
        raise GrammarError(f"json_schema must be a JSON object, not {source.strip()[:40]}", where="#", param="json_schema")
    return schema


def _schema_grammar(schema: Any) -> str:
    grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=JSON_DEFAULTS)
    return grammar


def _refuse_regex(message: str, translation: Translation) -> NoReturn:
    """The message holds the regex and, under it, a caret at the place; or it only names what is wrong."""
    lines = message.splitlines()
    reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    caret = next((line.index("^") - 4 for line in lines if re.fullmatch(r" {4} *\^+ *", line)), 0)
    if reason is None:
        found = re.search(r"lookarounds not supported yet; (\w+)", message)
        reason = "^ and $ may only stand at the very beginning and end" if found else _first_line(message)
        caret = _inner_anchor(translation.text) if found else 0
    refuse(reason, translation.place(caret))


def _inner_anchor(text: str) -> int:
    """The first ^ after the beginning, or $ before the end, outside of classes and escapes."""
    bare = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", lambda match: "." * len(match[0]), text)
    places = [index for index, char in enumerate(bare) if (char == "^" and index > 0) or (char == "$" and index < len(bare) - 1)]
    return min(places, default=0)


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "refused without a reason"
