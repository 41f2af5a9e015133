"""Grammars on llguidance: an Earley parser over derivative-based lexers, which computes the mask of a step in tens of microseconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from ramet.errors import GrammarError, Unsupported
from ramet.grammar.arena import INFINITE, NONE
from ramet.grammar.json_layout import COMPACT
from ramet.grammar.language import Language
from ramet.grammar.lowering import Lowered, lower
from ramet.grammar.lowering_process import LoweringProcesses
from ramet.grammar.mask_memory import MaskMemory
from ramet.grammar.matcher import CompiledGrammar, MaskTask, Matcher, Vocabulary
from ramet.grammar.regex_dialect import Translation, refuse, translate
from ramet.grammar.token_budget import NO_LIMIT, Budget, Closing, ClosingSource
from ramet.grammar.token_trie import TokenTrie
from ramet.grammar.vocabulary_tokenizer import Encode, VocabularyTokenizer

MAX_LEXER_STATES = 50_000
"""Of 1–2 KB each."""
LIGHT_LANGUAGE = 1 << 18
"""Bytes of a language as written down. Up to here it is read while the grammar compiles: milliseconds, and masks are shared."""
WHOLE = {"json_schema": "#", "structural_tag": "#"}
"""The pointer of what is wrong with a constraint as a whole, where those have pointers."""
TOO_COMPLEX = ("ParserTooComplex", "LexerTooComplex", "InternalError")


class LlguidanceCompiler:
    """Implements `GrammarCompiler`. Building it takes a pass over the vocabulary (0.1 s per 100k tokens); compiling mostly milliseconds."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        encode: Encode | None = None,
        whitespace: str = COMPACT,
        bounded: bool = True,
        processes: LoweringProcesses | None = None,
    ) -> None:
        self._eos_ids = frozenset(index for index in vocabulary.eos_ids if index < vocabulary.size)
        if not self._eos_ids:
            raise Unsupported("constraints need a token that ends the text, and this model's tokenizer names none")
        self._canonical = encode is not None
        self._whitespace = whitespace
        self._bounded = bounded
        self._processes = processes
        self._spelling = VocabularyTokenizer(vocabulary, self._eos_ids, encode)
        self._tokenizer = LLTokenizer(TokenizerWrapper(self._spelling), eos_token=sorted(self._eos_ids))
        self._assembling = Lock()
        self._trie = cache(lambda: TokenTrie(self._spelling.pieces))
        self._builders: dict[str, Callable[[str], LLMatcher]] = {
            "regex": self._regex,
            "json_schema": self._json_schema,
            "ebnf": self._ebnf,
            "structural_tag": self._structural_tag,
        }

    def compile(self, kind: str, source: str) -> CompiledGrammar:
        """Kinds: regex (see `regex_dialect`), json_schema (text of an object), ebnf (Lark, or GBNF with `root ::=`), structural_tag."""
        if kind not in self._builders:
            raise Unsupported(f"grammars of kind {kind!r} are not supported; known: {', '.join(self._builders)}", param=kind)
        lowering = lower if self._processes is None else self._processes.lower
        lowered = lowering(kind, source, self._whitespace)
        with self._assembling:  # one at a time: it runs beside the model
            return self.assemble(lowered)

    def close(self) -> None:
        """End the processes that it started."""
        if self._processes is not None:
            self._processes.close()

    def assemble(self, lowered: Lowered) -> CompiledGrammar:
        """The part of `compile` that needs the vocabulary. It runs without the interpreter lock, within the engine's limits."""
        kind = lowered.kind
        matcher = self._builders[kind](lowered.text)
        matcher.compute_bitmask()  # builds the first lexer states here rather than in every copy, and finds dead ends
        if matcher.stop_reason() in TOO_COMPLEX and not matcher.get_error().startswith("NoExtension"):
            what = f"{kind}: too complex for the constraint engine: {_first_line(matcher.get_error())}"
            raise GrammarError(what, where=WHOLE.get(kind), param=kind)
        if matcher.is_stopped() and not matcher.is_accepting():
            raise GrammarError(f"{kind}: no text at all satisfies it", where=WHOLE.get(kind), param=kind)
        is_remembered = kind != "ebnf" and not lowered.is_guarded
        masks = MaskMemory() if is_remembered else None  # an ebnf's lexer takes the longest match: a place is not all there is to know
        closing = self._guard(lowered) if lowered.is_guarded else self._closing(lowered)
        return _Compiled(matcher, self._eos_ids, self._canonical, closing, masks)

    def _guard(self, lowered: Lowered) -> Callable[[], ClosingSource]:
        """A source of its own for each request."""
        _, language = lowered.dump()
        spelling = self._spelling

        def make() -> Closing:
            return Closing(Language.load(language), self._trie(), spelling.pieces, spelling.spell)

        return lambda: ClosingSource(cache(make), INFINITE, is_guard=True)

    def _closing(self, lowered: Lowered) -> Callable[[], ClosingSource] | None:
        """Made here where that is quick, else when a budget first runs low."""
        if lowered.language is None or not self._bounded:
            return None
        spelling, worst = self._spelling, lowered.worst

        @cache
        def made() -> Closing:
            return Closing(lowered.read(), self._trie(), spelling.pieces, spelling.spell)

        is_made = worst >= INFINITE or lowered.size <= LIGHT_LANGUAGE
        if is_made:
            made()  # every step of it will ask: better here than on the scheduler's thread
        source = ClosingSource(made, worst, is_made)
        return lambda: source

    def _regex(self, source: str) -> LLMatcher:
        translation = translate(source)
        matcher = self._build(LLMatcher.grammar_from_regex(translation.text))
        if matcher.is_error():
            _refuse_regex(matcher.get_error(), translation)
        return matcher

    def _json_schema(self, lark: str) -> LLMatcher:
        return self._lark(lark, "json_schema")

    def _ebnf(self, lark: str) -> LLMatcher:
        return self._lark(lark, "ebnf")

    def _structural_tag(self, lark: str) -> LLMatcher:
        return self._lark(lark, "structural_tag")

    def _lark(self, lark: str, param: str) -> LLMatcher:
        matcher = self._build(lark if lark.startswith("{") else LLMatcher.grammar_from_lark(lark))
        if matcher.is_error():
            message = matcher.get_error()
            place = re.match(r"at (\d+)\((\d+)\): ", message)
            where = f"line {place[1]}, column {place[2]}" if place and param == "ebnf" else WHOLE.get(param)
            what = _first_line(message[place.end() if place else 0 :])
            if (regex := RegexComplaint.read(message)) and param == "ebnf":
                what, where = f"in /{regex.text}/: {regex.reason}", f"{where}, char {regex.at}"
            raise GrammarError(f"{param}: {what}", where=where, param=param)
        return matcher

    def _build(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(max_lexer_states=MAX_LEXER_STATES))


class _Compiled:
    def __init__(
        self,
        prototype: LLMatcher,
        eos_ids: frozenset[int],
        canonical: bool,
        closing: Callable[[], ClosingSource] | None,
        masks: MaskMemory | None,
    ) -> None:
        self._prototype = prototype
        self._eos_ids = eos_ids
        self._canonical = canonical
        self._closing = closing
        self._masks = masks

    def matcher(self, max_tokens: int | None = None) -> Matcher:
        source = None if self._closing is None else self._closing()
        budget = None
        if source is not None and (max_tokens is not None or source.is_guard):
            budget = Budget(source, NO_LIMIT if max_tokens is None else max_tokens, sorted(self._eos_ids))
        return _Matcher(self._prototype.deep_copy(), self._eos_ids, self._canonical, budget, self._masks)


class _Matcher:
    """Implements `Matcher`. An EOS token counts as an accepted token, and can be rolled back like any other. Where the grammar forces the
    next token, the mask allows only that one, as the tokenizer writes it: with and without jump-forward the tokens are the same."""

    def __init__(
        self, matcher: LLMatcher, eos_ids: frozenset[int], canonical: bool, budget: Budget | None, masks: MaskMemory | None
    ) -> None:
        self._matcher = matcher
        self._budget = budget
        self._masks = masks
        self._eos_ids = eos_ids
        self._canonical = canonical
        self._ended = False  # an EOS was accepted after the grammar had already stopped by itself

    def accept(self, token_ids: Sequence[int]) -> int:
        if self._ended:
            return 0
        num_legal = len(token_ids) if self._budget is None else self._budget.num_legal(token_ids)
        accepted: int = self._matcher.try_consume_tokens(list(token_ids[:num_legal]))
        if accepted < len(token_ids) and token_ids[accepted] in self._eos_ids and self._stopped_by_itself():
            self._ended = True
            accepted += 1
        if self._budget is not None:
            self._budget.accept(token_ids[:accepted])
        return accepted

    def _stopped_by_itself(self) -> bool:
        return self.stopped and self._matcher.is_accepting() and self._matcher.stop_reason() != "EndOfSentence"

    def rollback(self, num_tokens: int) -> None:
        if self._budget is not None:
            self._budget.rollback(num_tokens)
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens and not self._matcher.rollback(num_tokens):
            raise ValueError(f"cannot take back {num_tokens} tokens: {_first_line(self._matcher.get_error())}")

    def fill_mask(self, row: npt.NDArray[np.uint32]) -> None:
        task = self.start_mask(row)
        if task is not None:
            task.run()

    def start_mask(self, row: npt.NDArray[np.uint32]) -> MaskTask | None:
        assert row.flags["C_CONTIGUOUS"] and row.dtype == np.uint32, "a mask row is contiguous uint32"
        place = NONE if self._masks is None or self._budget is None or self.stopped else self._budget.place
        if self._masks is not None and place != NONE and self._masks.copy(place, row):
            self._narrow(row)
            return None
        key = None if place == NONE else (id(self._masks), place)
        return MaskTask(partial(self._compute_mask, row, place), self._matcher, partial(self._finish_mask, row, place), key)

    def _compute_mask(self, row: npt.NDArray[np.uint32], place: int) -> None:
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._finish_mask(row, place)

    def _finish_mask(self, row: npt.NDArray[np.uint32], place: int) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar grew too complex while generating: {_first_line(self._matcher.get_error())}")
        if self._matcher.is_stopped() and not self.complete:
            raise GrammarError("the grammar came to a place where nothing may follow and the text is not complete")
        if self._masks is not None and place != NONE:
            self._masks.keep(place, row)
        self._narrow(row)

    def _narrow(self, row: npt.NDArray[np.uint32]) -> None:
        if self._budget is not None and self._budget.is_low and not self.stopped:
            self._budget.narrow(row)

    def forced_tokens(self) -> list[int]:
        forced = self._forced() if self._canonical and not self.stopped else []
        return forced if not forced or self._budget is None or self._budget.affords(forced) else []

    def _forced(self) -> list[int]:
        place = NONE if self._masks is None or self._budget is None else self._budget.place
        known = None if self._masks is None or place == NONE else self._masks.forced(place)
        if known is None:
            known = self._matcher.compute_ff_tokens()
            if self._masks is not None and place != NONE:
                self._masks.keep_forced(place, known)
        return list(known)

    @property
    def complete(self) -> bool:
        accepting: bool = self._matcher.is_accepting() or self._matcher.stop_reason() == "EndOfSentence"
        return accepting

    @property
    def stopped(self) -> bool:
        stopped: bool = self._matcher.is_stopped()
        return stopped


def _refuse_regex(message: str, translation: Translation) -> NoReturn:
    complaint = RegexComplaint.read(message)
    if complaint is None:
        refuse(_first_line(message), 0)
    refuse(complaint.reason, translation.place(complaint.at))


@dataclass(frozen=True, slots=True)
class RegexComplaint:
    """What the engine says of a regex, and of which of its characters."""

    text: str
    reason: str
    at: int

    @classmethod
    def read(cls, message: str) -> RegexComplaint | None:
        """The message holds the regex and, under it, a caret at the place; or it only names what is wrong."""
        if found := re.search(r"^ {4}(.*)\n {4}( *)\^.*\n(?:.*\n)*?error: (.*)", message, re.MULTILINE):
            return cls(found[1], found[3], len(found[2]))
        if found := re.search(r"lookarounds not supported yet; \w+ in regex /(.*)/$", message, re.MULTILINE):
            return cls(found[1], "^ and $ may only stand at the very beginning and end", _inner_anchor(found[1]))
        return None


def _inner_anchor(text: str) -> int:
    """The first ^ after the beginning, or $ before the end, outside of classes and escapes."""
    bare = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", lambda match: "." * len(match[0]), text)
    places = [index for index, char in enumerate(bare) if (char == "^" and index > 0) or (char == "$" and index < len(bare) - 1)]
    return min(places, default=0)


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "refused without a reason"
