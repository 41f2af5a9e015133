"""What a tree of formats means, said a second time and as simply as can be: where each format's texts end, and texts to try."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.grammar.test_structural_tags import BODIES, is_valid

LETTERS = '<f=>ab1"{}é\n'
GRAMMARS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ('root ::= "a" [b<]* "a"', r"a[b<]*a", ("aa", "ab<a")),
    ('root ::= x "<"?\nx ::= "b" | "(" x ")"', r"b<?|\(b\)<?|\(\(b\)\)<?|\(\(\(b\)\)\)<?", ("b", "(b)<", "((b))")),
)
"""GBNF, a regex for texts of up to three parentheses, some texts."""
PATTERNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("[a-f]+", ("a", "ff", "abb")),
    ("<?(a|ab)(b|=)?", ("a", "<ab=", "abb")),
    ("[^<]{0,3}", ("", "é", "b\n1")),
    ("1*", ("", "11")),
)
Format = Mapping[str, Any]
Ends = frozenset[int]


class Naive:
    """The meaning of a format on one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._known: dict[tuple[int, int, tuple[str, ...]], Ends] = {}

    def matches(self, given: Format) -> bool:
        return len(self._text) in self.ends(given, 0, ())

    def ends(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        """Where texts of the format that begin at `at` end; `marks`: ends of the tag around it."""
        key = (id(given), at, marks)
        if key not in self._known:
            method: Callable[[Format, int, tuple[str, ...]], Ends] = getattr(self, "_" + given["type"])
            self._known[key] = method(given, at, marks)
        return self._known[key]

    def _stops(self, at: int, is_text: Callable[[str], bool]) -> Ends:
        return frozenset(stop for stop in range(at, len(self._text) + 1) if is_text(self._text[at:stop]))

    def _const_string(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self._literal(given["value"], at)

    def _literal(self, text: str, at: int) -> Ends:
        return frozenset({at + len(text)} if self._text.startswith(text, at) else ())

    def _json_schema(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        body = next(index for index, (schema, _, _) in enumerate(BODIES) if schema == given["json_schema"])
        return self._stops(at, lambda text: is_valid(body, text))

    def _any_text(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        most = given.get("max_chars", len(self._text))
        return self._stops(at, lambda text: len(text) <= most and holds_none(text, [*marks, *given.get("excludes", ())]))

    def _regex(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self._stops(at, lambda text: bool(re.fullmatch(given["pattern"], text)) and holds_none(text, given.get("excludes", ())))

    def _grammar(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        pattern = next(pattern for source, pattern, _ in GRAMMARS if source == given["grammar"])
        return self._stops(at, lambda text: bool(re.fullmatch(pattern, text)))

    def _sequence(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        found = frozenset({at})
        for element in given["elements"]:
            found = self._all(found, lambda place, element=element: self.ends(element, place, marks))
        return found

    def _all(self, places: Ends, ends: Callable[[int], Ends]) -> Ends:
        return frozenset[int]().union(*map(ends, places))

    def _or(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return frozenset[int]().union(*(self.ends(element, at, marks) for element in given["elements"]))

    def _optional(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self._times(given, at, marks, 0, 1)

    def _star(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self._times(given, at, marks, 0, len(self._text))

    def _plus(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self._times(given, at, marks, 1, len(self._text) + 1)

    def _repeat(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self._times(given, at, marks, given["min"], given["max"] if given["max"] >= 0 else len(self._text) + given["min"])

    def _times(self, given: Format, at: int, marks: tuple[str, ...], low: int, high: int) -> Ends:
        places, found = frozenset({at}), frozenset[int]()
        for count in range(high + 1):
            found |= places if count >= low else frozenset()
            places = self._all(places, lambda place: self.ends(given["content"], place, marks))
        return found

    def _tag(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self._all(self._literal(given["begin"], at), lambda place: self._body(given, place))

    def _body(self, tag: Format, at: int) -> Ends:
        ends = tag["end"] if isinstance(tag["end"], list) else [tag["end"]]
        return self._closed(tag["content"], at, tuple(end for end in ends if end), ends)

    def _closed(self, given: Format, at: int, marks: tuple[str, ...], ends: Sequence[str]) -> Ends:
        """Where texts of the format and one of `ends` behind it end. Free text right before an end goes on up to where it begins first."""
        match given["type"]:
            case "sequence":
                *others, last = given["elements"]
                places = self._sequence({"elements": others}, at, marks)
                return self._all(places, lambda place: self._closed(last, place, marks, ends))
            case "or":
                return frozenset[int]().union(*(self._closed(element, at, marks, ends) for element in given["elements"]))
            case "optional":
                return self._closed(given["content"], at, marks, ends) | self._one_of(ends, at)
            case "any_text":
                return self._closed_text(at, [*marks, *given.get("excludes", ())], ends, given.get("max_chars"))
            case "triggered_tags" | "dispatch":
                return self.triggered(given, at, marks, ends)
        return self._all(self.ends(given, at, marks), lambda place: self._one_of(ends, place))

    def _one_of(self, texts: Sequence[str], at: int) -> Ends:
        return frozenset[int]().union(*(self._literal(text, at) for text in texts))

    def _closed_text(self, at: int, marks: Sequence[str], ends: Sequence[str], most: int | None) -> Ends:
        found = set[int]()
        for place in self._stops(at, lambda text: holds_none(text, marks) and (most is None or len(text) <= most)):
            for stop in self._one_of(ends, place):
                begun = any(self._text.startswith(mark, start, stop) for mark in marks for start in range(at, place))
                found |= set() if begun and stop > place else {stop}
        return frozenset(found)

    def _tags_with_separator(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        def one(place: int) -> Ends:
            return frozenset[int]().union(*(self._tag(tag, place, ()) for tag in given["tags"]))

        found, places = frozenset[int](), one(at)
        while not places <= found:
            found |= places
            if not given.get("stop_after_first"):
                places = self._all(self._all(places, lambda place: self._literal(given["separator"], place)), one)
        return found if given.get("at_least_one") else found | {at}

    def _triggered_tags(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self.triggered(given, at, marks, [""])

    def _dispatch(self, given: Format, at: int, marks: tuple[str, ...]) -> Ends:
        return self.triggered(given, at, marks, [""])

    def triggered(self, given: Format, at: int, marks: tuple[str, ...], ends: Sequence[str]) -> Ends:
        """With one of `ends` behind."""
        stops, after, starts = bool(given.get("stop_after_first")), dict[str, Callable[[int], Ends]](), frozenset({at})
        if given["type"] == "dispatch":
            stops = not given.get("loop", True)
            for trigger, _ in given["rules"]:
                after[trigger] = lambda place, trigger=trigger: self._ruled(given, trigger, place, marks, ends if stops else [""])
        else:
            for trigger in given["triggers"]:
                after[trigger] = lambda place, trigger=trigger: self._tagged(given, trigger, place - len(trigger))
        if given.get("at_least_one"):
            starts = self._tagged(given, "", at)
        behind = lambda place: self._one_of(ends, place)  # noqa: E731
        if stops and given.get("at_least_one"):
            return self._all(starts, behind)
        closes_itself = stops and given["type"] == "dispatch"
        return self._dispatched(after, [*marks, *given.get("excludes", ())], stops, closes_itself, starts, ends)

    def _tagged(self, given: Format, trigger: str, at: int) -> Ends:
        tags = [tag for tag in given["tags"] if tag["begin"].startswith(trigger)]
        return frozenset[int]().union(*(self._tag(tag, at, ()) for tag in tags))

    def _ruled(self, given: Format, trigger: str, at: int, marks: tuple[str, ...], ends: Sequence[str]) -> Ends:
        inner = [inner for text, inner in given["rules"] if text == trigger]
        return frozenset[int]().union(*(self._closed(one, at, marks, ends) for one in inner))

    def _dispatched(
        self,
        after: Mapping[str, Callable[[int], Ends]],
        excludes: Sequence[str],
        stops: bool,
        closes_itself: bool,
        starts: Ends,
        ends: Sequence[str],
    ) -> Ends:
        """Free text up to the first trigger, what comes after it, and again."""
        found, seen, queue = frozenset[int](), set[int](), set(starts)
        while queue:
            at = queue.pop()
            seen.add(at)
            found |= self._closed_text(at, [*after, *excludes], ends, None)
            for stop in range(at, len(self._text) + 1):
                text = self._text[at:stop]
                triggers = [trigger for trigger in after if text.endswith(trigger)]
                if triggers and holds_none(text[:-1], list(after)) and holds_none(text, excludes):
                    behind = frozenset[int]().union(*(after[trigger](stop) for trigger in triggers))
                    if stops:
                        found |= behind if closes_itself else self._all(behind, lambda place: self._one_of(ends, place))
                    else:
                        queue |= behind - seen
        return found


def holds_none(text: str, marks: Sequence[str]) -> bool:
    return not any(mark in text for mark in marks)


class Sampler:
    """Texts of formats, most of the time; where free text meets what follows it, not always."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def of(self, given: Format) -> str:
        method: Callable[[Format], str] = getattr(self, "_" + given["type"])
        return method(given)

    def _text(self) -> str:
        return "".join(self._rng.choice(LETTERS) for _ in range(self._rng.choice((0, 1, 1, 2, 4))))

    def _const_string(self, given: Format) -> str:
        return str(given["value"])

    def _json_schema(self, given: Format) -> str:
        return self._rng.choice(next(right for schema, right, _ in BODIES if schema == given["json_schema"]))

    def _any_text(self, given: Format) -> str:
        return self._text()[: given.get("max_chars", 9)]

    def _regex(self, given: Format) -> str:
        return self._rng.choice(next(texts for pattern, texts in PATTERNS if pattern == given["pattern"]))

    def _grammar(self, given: Format) -> str:
        return self._rng.choice(next(texts for source, _, texts in GRAMMARS if source == given["grammar"]))

    def _sequence(self, given: Format) -> str:
        return "".join(map(self.of, given["elements"]))

    def _or(self, given: Format) -> str:
        return self.of(self._rng.choice(given["elements"]))

    def _optional(self, given: Format) -> str:
        return self._times(given, 0, 1)

    def _star(self, given: Format) -> str:
        return self._times(given, 0, 2)

    def _plus(self, given: Format) -> str:
        return self._times(given, 1, 2)

    def _repeat(self, given: Format) -> str:
        return self._times(given, given["min"], given["max"] if given["max"] >= 0 else given["min"] + 1)

    def _times(self, given: Format, low: int, high: int) -> str:
        return "".join(self.of(given["content"]) for _ in range(self._rng.randint(low, high)))

    def _tag(self, given: Format) -> str:
        end = given["end"] if isinstance(given["end"], str) else self._rng.choice(given["end"])
        return str(given["begin"]) + self.of(given["content"]) + str(end)

    def _tags_with_separator(self, given: Format) -> str:
        num_tags = self._rng.randint(1 if given.get("at_least_one") else 0, 1 if given.get("stop_after_first") else 3)
        return str(given["separator"]).join(self._tag(self._rng.choice(given["tags"])) for _ in range(num_tags))

    def _triggered_tags(self, given: Format) -> str:
        text = self._tag(self._rng.choice(given["tags"])) if given.get("at_least_one") else self._text()
        if given.get("at_least_one") and given.get("stop_after_first"):
            return text
        for _ in range(self._rng.randint(0, 1 if given.get("stop_after_first") else 2)):
            text += self._tag(self._rng.choice(given["tags"])) + ("" if given.get("stop_after_first") else self._text())
        return text

    def _dispatch(self, given: Format) -> str:
        text = self._text()
        for _ in range(self._rng.randint(0, 2 if given.get("loop", True) else 1)):
            trigger, inner = self._rng.choice(given["rules"])
            text += trigger + self.of(inner) + (self._text() if given.get("loop", True) else "")
        return text


def mutated(rng: random.Random, text: str) -> str:
    """With one character more, less, or another, or a piece of it twice."""
    at = rng.randrange(len(text) + 1)
    size = rng.choice((0, 1, 1, 3))
    return text[:at] + rng.choice(("", rng.choice(LETTERS), text[at : at + 4] * 2)) + text[at + size :]
