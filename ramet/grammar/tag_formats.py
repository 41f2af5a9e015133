"""The `format` trees of structural tags → one expression: free text, tags and schemas within each other.

What is regular all through ("plain") stays one piece as long as it can, and becomes one lexeme with the plain text that follows it: free
text knows its end only together with what ends it. That is why each part is lowered with its `tail`, the plain text that must follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ramet.errors import GrammarError
from ramet.grammar.arena import EPSILON, UNBOUNDED, Arena
from ramet.grammar.derivatives import Walker
from ramet.grammar.ebnf_lowering import read_gbnf
from ramet.grammar.free_text import any_text, one_of, up_to_end, up_to_trigger, without
from ramet.grammar.json_layout import Layout
from ramet.grammar.lexemes_apart import write_apart
from ramet.grammar.pattern_expressions import whole
from ramet.grammar.schema_lowering import lower_schema
from ramet.grammar.tag_fields import check_keys, count_of, flag_of, list_of, refuse, text_of, texts_of, within

TOKENS = "is about tokens; a constraint is about text"
REFUSED = {
    "qwen_xml_parameter": "is not JSON; write it as a grammar",
    **dict.fromkeys(("token", "exclude_token", "any_tokens", "token_triggered_tags", "token_dispatch"), TOKENS),
}


class Part(NamedTuple):
    """`is_plain`: regular, and not yet cut into lexemes."""

    node: int
    is_plain: bool


class Tail(NamedTuple):
    """What must follow: one of `ends`, if there are any, which the tag around has there, and then the plain text `node`."""

    node: int
    ends: tuple[str, ...] = ()


class Tag(NamedTuple):
    begin: str
    body: Part  # what follows `begin`


class Structure(NamedTuple):
    """A trigger, what follows it, the schema of the JSON behind that, and where that stands."""

    trigger: str
    rest_of_begin: str
    schema: Any
    end: str
    where: str


class LoweredFormat(NamedTuple):
    """`schemas`: the expressions of its JSON schemas, and where these stand."""

    start: int
    schemas: Mapping[int, str]

    def lark(self, walker: Walker) -> str:
        return write_apart(walker, self.start, self.schemas)


def lower_format(arena: Arena, layout: Layout, tree: Any, where: str) -> LoweredFormat:
    formats = _Formats(arena, layout)
    return LoweredFormat(formats.cut(formats.lower(tree, where, (), Tail(EPSILON))), formats.schemas)


def lower_structures(arena: Arena, layout: Layout, structures: Sequence[Structure]) -> LoweredFormat:
    """Free text in which each of their triggers begins one of them."""
    formats, after = _Formats(arena, layout), dict[str, list[Part]]()
    for trigger, rest_of_begin, schema, end, where in structures:
        body = formats.schema(schema, where, Tail(arena.text(end)))
        after.setdefault(trigger, []).append(formats.begun(rest_of_begin, body))
    return LoweredFormat(formats.triggered(after, (), False, Tail(EPSILON)), formats.schemas)


class _Formats:
    """One method for each type. `marks`: the ends of the tag around it, of which free text holds none."""

    def __init__(self, arena: Arena, layout: Layout) -> None:
        self._arena = arena
        self._layout = layout
        self.schemas: dict[int, str] = {}
        self._types: Mapping[str, tuple[Callable[[Mapping[str, Any], str, Sequence[str], Tail], Part], tuple[str, ...]]] = {
            "const_string": (self._const_string, ("value",)),
            "json_schema": (self._json_schema, ("json_schema", "style", "any_order")),
            "any_text": (self._any_text, ("excludes", "max_chars", "max_tokens")),
            "regex": (self._regex, ("pattern", "excludes")),
            "grammar": (self._grammar, ("grammar",)),
            "sequence": (self._sequence, ("elements",)),
            "or": (self._or, ("elements",)),
            "optional": (self._optional, ("content",)),
            "star": (self._star, ("content",)),
            "plus": (self._plus, ("content",)),
            "repeat": (self._repeat, ("content", "min", "max")),
            "tag": (self._tag, ("begin", "content", "end")),
            "triggered_tags": (self._triggered_tags, ("triggers", "tags", "excludes", "at_least_one", "stop_after_first")),
            "tags_with_separator": (self._tags_with_separator, ("tags", "separator", "at_least_one", "stop_after_first")),
            "dispatch": (self._dispatch, ("rules", "loop", "excludes")),
        }

    def lower(self, given: Any, where: str, marks: Sequence[str], tail: Tail) -> Part:
        if not isinstance(given, Mapping):
            refuse("a format is an object with a type", where)
        kind = given.get("type")
        if kind in REFUSED:
            refuse(f"the format {kind!r} {REFUSED[kind]}", f"{where}/type")
        if not isinstance(kind, str) or kind not in self._types:
            refuse(f"{kind!r} is no format; known: {', '.join(self._types)}", f"{where}/type")
        method, keys = self._types[kind]
        check_keys(given, ("type", *keys), where)
        return method(given, where, marks, tail)

    def cut(self, part: Part) -> int:
        return self._arena.lexeme(part.node) if part.is_plain else part.node

    # ── text ──

    def _const_string(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        return self._then(Part(self._arena.text(text_of(given, "value", where)), True), tail)

    def _any_text(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        if given.get("max_tokens") is not None:
            refuse(TOKENS, f"{where}/max_tokens")
        most = UNBOUNDED if given.get("max_chars") is None else count_of(given, "max_chars", where)
        return Part(self._free([*marks, *texts_of(given, "excludes", where)], tail, most), True)

    def _free(self, marks: Sequence[str], tail: Tail, most: int = UNBOUNDED) -> int:
        """Text without marks, of so many characters at most, and its tail: the end that comes first."""
        arena, text = self._arena, any_text(self._arena, most)
        closed = [up_to_end(arena, end, marks, text) for end in tail.ends if end]
        if not tail.ends or "" in tail.ends:
            closed.append(without(arena, marks, text))
        return arena.seq(arena.alt(closed), tail.node)

    def _regex(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        try:
            found = whole(self._arena, text_of(given, "pattern", where), "python")
        except GrammarError as error:
            raise within(error, f"{where}/pattern") from error
        return self._then(Part(without(self._arena, texts_of(given, "excludes", where), found), True), tail)

    # ── schemas and grammars ──

    def _json_schema(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        if given.get("style") not in (None, "json"):
            refuse(f"the style {given['style']!r} is not JSON; write it as a grammar", f"{where}/style")
        if flag_of(given, "any_order", where):
            refuse("would leave out which properties there are; properties come in the order of their declaration", f"{where}/any_order")
        return self.schema(given.get("json_schema"), f"{where}/json_schema", tail)

    def schema(self, schema: Any, where: str, tail: Tail) -> Part:
        try:
            found = lower_schema(self._arena, self._layout, schema)
        except GrammarError as error:
            raise within(error, where) from error
        self.schemas[found] = where
        return self._then(Part(found, False), tail)

    def _grammar(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        try:
            found = read_gbnf(self._arena, text_of(given, "grammar", where))
        except GrammarError as error:
            raise within(error, f"{where}/grammar") from error
        return self._then(Part(found, False), tail)

    # ── compositions ──

    def _sequence(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        rest, is_plain = EPSILON, True
        for index, element in reversed([*enumerate(list_of(given, "elements", where))]):
            part = self.lower(element, f"{where}/elements/{index}", marks, tail)
            if part.is_plain:
                tail = Tail(part.node)
            else:
                rest, tail, is_plain = self._arena.seq(part.node, rest), Tail(EPSILON), False
        return Part(tail.node, True) if is_plain else Part(self._arena.seq(self._arena.lexeme(tail.node), rest), False)

    def _or(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        elements = list_of(given, "elements", where)
        return self._one_of([self.lower(element, f"{where}/elements/{index}", marks, tail) for index, element in enumerate(elements)])

    def _one_of(self, parts: Sequence[Part]) -> Part:
        is_plain = all(part.is_plain for part in parts)
        return Part(self._arena.alt(part.node if is_plain else self.cut(part) for part in parts), is_plain)

    def _optional(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        return self._one_of([self.lower(given.get("content"), f"{where}/content", marks, tail), self._then(Part(EPSILON, True), tail)])

    def _star(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        return self._repeated(given, where, marks, tail, 0, UNBOUNDED)

    def _plus(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        return self._repeated(given, where, marks, tail, 1, UNBOUNDED)

    def _repeat(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        low, high = count_of(given, "min", where), count_of(given, "max", where, least=UNBOUNDED)
        if UNBOUNDED < high < low:
            refuse("is less than min", f"{where}/max")
        return self._repeated(given, where, marks, tail, low, high)

    def _repeated(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail, low: int, high: int) -> Part:
        content = self.lower(given.get("content"), f"{where}/content", marks, Tail(EPSILON))
        return self._then(Part(self._arena.rep(content.node, low, high), content.is_plain), tail)

    def _then(self, part: Part, tail: Tail) -> Part:
        following = self._arena.seq(one_of(self._arena, tail.ends) if tail.ends else EPSILON, tail.node)
        return Part(self._arena.seq(part.node, following if part.is_plain else self._arena.lexeme(following)), part.is_plain)

    # ── tags ──

    def _tag(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        tag = self._read_tag(given, where, tail)
        return self.begun(tag.begin, tag.body)

    def begun(self, begin: str, body: Part) -> Part:
        text = self._arena.text(begin)
        return Part(self._arena.seq(text if body.is_plain else self._arena.lexeme(text), body.node), body.is_plain)

    def _read_tag(self, given: Mapping[str, Any], where: str, tail: Tail) -> Tag:
        end, ends = given.get("end"), []
        for index, text in enumerate(end if isinstance(end, list) and end else [end]):
            place = f"{where}/end/{index}" if isinstance(end, list) and end else f"{where}/end"
            ends.append(text if isinstance(text, str) else refuse("must be text, or a list of texts", place))
        behind = self._then(Part(EPSILON, True), tail).node
        body = self.lower(given.get("content"), f"{where}/content", [text for text in ends if text], Tail(behind, tuple(ends)))
        return Tag(text_of(given, "begin", where), body)

    def _read_tags(self, given: Mapping[str, Any], where: str, tail: Tail) -> list[Tag]:
        tags = list_of(given, "tags", where)
        for index, tag in enumerate(tags):
            if not isinstance(tag, Mapping) or tag.get("type", "tag") != "tag":
                refuse("must be a tag", f"{where}/tags/{index}")
            check_keys(tag, ("type", "begin", "content", "end"), f"{where}/tags/{index}")
        return [self._read_tag(tag, f"{where}/tags/{index}", tail) for index, tag in enumerate(tags)]

    def _tags_with_separator(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        stops, needs_one = flag_of(given, "stop_after_first", where), flag_of(given, "at_least_one", where)
        separator = self._arena.text(text_of(given, "separator", where))
        one = self._one_of([self.begun(*tag) for tag in self._read_tags(given, where, Tail(EPSILON))])
        more = (
            EPSILON if stops else self._arena.rep(self._arena.seq(separator if one.is_plain else self._arena.lexeme(separator), one.node))
        )
        found = self._arena.seq(one.node, more)
        return self._then(Part(found if needs_one else self._arena.optional(found), one.is_plain), tail)

    # ── free text with triggers ──

    def _triggered_tags(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        stops, needs_one = flag_of(given, "stop_after_first", where), flag_of(given, "at_least_one", where)
        list_of(given, "triggers", where)
        triggers = texts_of(given, "triggers", where)
        tags = self._read_tags(given, where, tail if stops else Tail(EPSILON))
        after: dict[str, list[Part]] = {trigger: [] for trigger in triggers}
        for index, tag in enumerate(tags):
            trigger = _trigger_of(tag.begin, triggers, f"{where}/tags/{index}/begin")
            after[trigger].append(self.begun(tag.begin[len(trigger) :], tag.body))
        first = self._arena.alt(self.cut(self.begun(*tag)) for tag in tags)
        if stops and needs_one:
            return Part(first, False)
        found = self.triggered(after, [*marks, *texts_of(given, "excludes", where)], stops, tail)
        return Part(self._arena.seq(first, found) if needs_one else found, False)

    def _dispatch(self, given: Mapping[str, Any], where: str, marks: Sequence[str], tail: Tail) -> Part:
        stops, after = not flag_of(given, "loop", where, default=True), dict[str, list[Part]]()
        for index, rule in enumerate(list_of(given, "rules", where)):
            place = f"{where}/rules/{index}"
            if not isinstance(rule, list) or len(rule) != 2 or not isinstance(rule[0], str) or not rule[0]:
                refuse("must be a pair of a text, not empty, and a format", place)
            after.setdefault(rule[0], []).append(self.lower(rule[1], f"{place}/1", marks, tail if stops else Tail(EPSILON)))
        return Part(self.triggered(after, [*marks, *texts_of(given, "excludes", where)], stops, tail), False)

    def triggered(self, after: Mapping[str, Sequence[Part]], excludes: Sequence[str], stops: bool, tail: Tail) -> int:
        """Free text up to the first trigger, then one of the parts that follow it; once, or over and over. `tail` is already behind them if
        `stops`."""
        arena = self._arena
        rest = arena.lexeme(self._free([*after, *excludes], tail))
        begun = [
            arena.seq(arena.lexeme(up_to_trigger(arena, trigger, after, excludes)), arena.alt(map(self.cut, parts)))
            for trigger, parts in after.items()
        ]
        return arena.alt((rest, *begun)) if stops else arena.seq(arena.rep(arena.alt(begun)), rest)


def _trigger_of(begin: str, triggers: Sequence[str], where: str) -> str:
    found = [trigger for trigger in dict.fromkeys(triggers) if begin.startswith(trigger)]
    if len(found) != 1:
        refuse(f"{begin!r} begins with {'none' if not found else 'several'} of the triggers; it must be with one", where)
    return found[0]
