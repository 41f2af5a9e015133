"""What a schema rules out, as branches: of each keyword the values that violate it. A keyword of one type is violated by values of that
type alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Protocol

from ramet.grammar import schema_keywords as keywords
from ramet.grammar.schema_branches import (
    ANYTHING,
    NOT,
    Arrays,
    Bound,
    Branch,
    Contains,
    Goal,
    Numbers,
    Objects,
    Scope,
    Some,
    Strings,
    Values,
    conjoin,
    text_of,
)
from ramet.grammar.schema_document import ANNOTATIONS, Document, refuse
from ramet.grammar.schema_resources import escape
from ramet.grammar.string_formats import ANNOTATIONS as FREE_FORMATS
from ramet.grammar.string_formats import INTEGER_FORMATS

Branches = tuple[Branch, ...]
BESIDE = frozenset(("then", "else", "minContains", "maxContains", "nullable"))
"""What they say is said by another keyword."""
BOUNDS: Mapping[str, Callable[[Decimal], Branch]] = {
    "minimum": lambda value: Numbers(high=Bound(value, True)),
    "exclusiveMinimum": lambda value: Numbers(high=Bound(value, False)),
    "maximum": lambda value: Numbers(low=Bound(value, True)),
    "exclusiveMaximum": lambda value: Numbers(low=Bound(value, False)),
}
COUNTS: Mapping[str, tuple[type[Strings | Arrays | Objects], bool]] = {
    "minLength": (Strings, True),
    "maxLength": (Strings, False),
    "minItems": (Arrays, True),
    "maxItems": (Arrays, False),
    "minProperties": (Objects, True),
    "maxProperties": (Objects, False),
}


class Context(keywords.Context, Protocol):
    def expand(self, pointer: str) -> Branches:
        """What is valid against the subschema."""

    def all_of(self, goals: Iterable[str], pointer: str) -> Branches:
        """What is valid against all of them."""

    def intersect(self, one: Branches, other: Branches, pointer: str) -> Branches: ...


def violations(schema: Mapping[str, Any], pointer: str, context: Context) -> Iterator[Branch]:
    """Their union is everything that `schema` is not."""
    for keyword in schema:
        if keyword not in ANNOTATIONS and keyword not in BESIDE and not keyword.startswith("x-"):
            yield from _Violations(schema, pointer, context).of(keyword)


def absent(document: Document, name: str) -> Objects:
    """Objects without this property."""
    return Objects((name,), scopes=(Scope(((name, frozenset({document.never})),), is_seen=False),))


def present(name: str, value: Goal = ANYTHING) -> Objects:
    return Objects((name,), frozenset({name}), scopes=(Scope(((name, value),), is_seen=False),) if value else ())


class _Violations:
    def __init__(self, schema: Mapping[str, Any], pointer: str, context: Context) -> None:
        self._schema = schema
        self._pointer = pointer
        self._context = context
        self._document = context.document

    def of(self, keyword: str) -> Iterable[Branch]:
        value = self._schema[keyword]
        if keyword in BOUNDS:
            return [BOUNDS[keyword](Decimal(repr(value)))]
        if keyword in COUNTS:
            return _other_counts(*COUNTS[keyword], int(value))
        method: Callable[[Any], Iterable[Branch]] | None = getattr(self, "_of_" + keyword.lstrip("$"), None)
        return method(value) if method is not None else self._refuse(keyword)

    def _refuse(self, keyword: str) -> Iterable[Branch]:
        refuse(f"the opposite of {keyword!r} cannot be enforced", f"{self._pointer}/{keyword}")

    def _child(self, *path: str | int) -> str:
        return self._document.child(self._pointer, *path)

    def _not(self, *path: str | int) -> Goal:
        return frozenset({NOT + self._child(*path)})

    # ── values ──

    def _of_type(self, _: Any) -> Iterable[Branch]:
        types = keywords.types_of(self._schema) or []
        literals = [text for name, texts in (("null", ("null",)), ("boolean", ("true", "false"))) if name not in types for text in texts]
        found: list[Branch] = [Values(tuple(literals))] if literals else []
        if "number" not in types:
            found.append(Numbers(avoided=keywords.FRACTIONS) if "integer" in types else Numbers())
        empty: dict[str, Branch] = {"string": Strings(), "array": Arrays(), "object": Objects()}
        return [*found, *(branch for name, branch in empty.items() if name not in types)]

    def _of_const(self, value: Any) -> Iterable[Branch]:
        return self._of_enum([value])

    def _of_enum(self, values: list[Any]) -> Iterable[Branch]:
        texts = {text_of(value) for value in values}
        literals = tuple(text for text in ("null", "true", "false") if text not in texts)
        strings = frozenset(value for value in values if isinstance(value, str))
        numbers = sorted({Decimal(repr(value)) for value in values if isinstance(value, int | float) and not isinstance(value, bool)})
        lows, highs = [None, *(Bound(value, True) for value in numbers)], [*(Bound(value, True) for value in numbers), None]
        found: list[Branch] = [Values(literals)] if literals else []
        found += [Numbers(low=low, high=high) for low, high in zip(lows, highs, strict=True)]
        found.append(Strings(excluded=strings))
        arrays: Branches = (Arrays(),)
        objects: Branches = (Objects(),)
        for index, value in enumerate(values):
            where = f"{self._pointer}/{index}'"
            if isinstance(value, list):
                arrays = self._context.intersect(arrays, tuple(self._other_arrays(value, where)), self._pointer)
            if isinstance(value, dict):
                objects = self._context.intersect(objects, tuple(self._other_objects(value, where)), self._pointer)
        return [*found, *arrays, *objects]

    def _other_arrays(self, value: list[Any], where: str) -> Iterator[Branch]:
        yield from _other_counts(Arrays, True, len(value))
        yield from _other_counts(Arrays, False, len(value))
        for index, item in enumerate(value):
            other = NOT + self._document.add(f"{where}/{index}'", {"const": item})
            yield Arrays((ANYTHING,) * index + (frozenset({other}),), low=index + 1)

    def _other_objects(self, value: dict[str, Any], where: str) -> Iterator[Branch]:
        yield Objects(some=frozenset({Some(ANYTHING, frozenset(value))}))
        for name, item in value.items():
            yield absent(self._document, name)
            yield present(name, frozenset({NOT + self._document.add(f"{where}/{escape(name)}'", {"const": item})}))

    def _of_multipleOf(self, _: Any) -> Iterable[Branch]:
        return [Numbers(avoided=frozenset({keywords.whole_step(self._schema, self._pointer)}))]

    def _of_pattern(self, pattern: str) -> Iterable[Branch]:
        keywords.readable([pattern], self._pointer + "/pattern", self._context)
        return [Strings(unmatched=frozenset({pattern}))]

    def _of_format(self, name: str) -> Iterable[Branch]:
        if name in FREE_FORMATS:
            return []
        if name not in INTEGER_FORMATS:
            return self._refuse("format")
        low, high = INTEGER_FORMATS[name]
        return [Numbers(high=Bound(Decimal(low), True)), Numbers(low=Bound(Decimal(high), True))]

    # ── applicators ──

    def _of_ref(self, _: str) -> Iterable[Branch]:
        return self._context.expand(NOT + self._document.resolve("$ref", self._pointer))

    def _of_dynamicRef(self, _: str) -> Iterable[Branch]:
        return self._context.expand(NOT + self._document.resolve("$dynamicRef", self._pointer))

    def _of_not(self, _: Any) -> Iterable[Branch]:
        return self._context.expand(self._child("not"))

    def _of_allOf(self, children: list[Any]) -> Iterator[Branch]:
        for index in range(len(children)):
            yield from self._context.expand(NOT + self._child("allOf", index))

    def _of_anyOf(self, children: list[Any]) -> Iterable[Branch]:
        return self._context.all_of((NOT + self._child("anyOf", index) for index in range(len(children))), self._pointer)

    def _of_oneOf(self, children: list[Any]) -> Iterator[Branch]:
        options = [self._child("oneOf", index) for index in range(len(children))]
        yield from self._context.all_of((NOT + option for option in options), self._pointer)
        for index, option in enumerate(options):
            for other in options[:index]:
                yield from self._context.all_of((other, option), self._pointer)

    def _of_if(self, _: Any) -> Iterator[Branch]:
        condition = self._child("if")
        for keyword, case in (("then", condition), ("else", NOT + condition)):
            if keyword in self._schema:
                yield from self._context.all_of((case, NOT + self._child(keyword)), self._pointer)

    # ── arrays ──

    def _of_prefixItems(self, children: list[Any]) -> Iterator[Branch]:
        for index in range(len(children)):
            yield Arrays((ANYTHING,) * index + (self._not("prefixItems", index),), low=index + 1)

    def _of_items(self, children: Any) -> Iterator[Branch]:
        if isinstance(children, list):
            for index in range(len(children)):
                yield Arrays((ANYTHING,) * index + (self._not("items", index),), low=index + 1)
        else:
            yield from self._some_item("items", len(self._schema.get("prefixItems", ())))

    def _of_additionalItems(self, _: Any) -> Iterable[Branch]:
        tuple_items = self._schema.get("items")
        return self._some_item("additionalItems", len(tuple_items)) if isinstance(tuple_items, list) else []

    def _some_item(self, keyword: str, start: int) -> Iterable[Branch]:
        (other,) = self._not(keyword)
        return [Arrays(contains=(Contains(other, 1, None, start),))]

    def _of_contains(self, _: Any) -> Iterator[Branch]:
        child, least = self._child("contains"), int(self._schema.get("minContains", 1))
        if least:
            yield Arrays(contains=(Contains(child, 0, least - 1),))
        if "maxContains" in self._schema:
            yield Arrays(contains=(Contains(child, int(self._schema["maxContains"]) + 1),))

    def _of_unevaluatedItems(self, child: Any) -> Iterable[Branch]:
        return [] if child is True else self._refuse("unevaluatedItems")

    def _of_uniqueItems(self, is_unique: bool) -> Iterable[Branch]:
        return self._refuse("uniqueItems") if is_unique else []

    # ── objects ──

    def _of_required(self, names: list[str]) -> Iterator[Branch]:
        yield from (absent(self._document, name) for name in names)

    def _of_properties(self, children: Mapping[str, Any]) -> Iterator[Branch]:
        yield from (present(name, self._not("properties", name)) for name in children)

    def _of_patternProperties(self, children: Mapping[str, Any]) -> Iterator[Branch]:
        for pattern in children:
            keywords.readable([pattern], f"{self._pointer}/patternProperties/{escape(pattern)}", self._context)
            yield Objects(some=frozenset({Some(self._not("patternProperties", pattern), matched=pattern)}))

    def _of_additionalProperties(self, _: Any) -> Iterator[Branch]:
        names, patterns = (frozenset(self._schema.get(key, ())) for key in ("properties", "patternProperties"))
        yield Objects(some=frozenset({Some(self._not("additionalProperties"), names, patterns)}))

    def _of_propertyNames(self, _: Any) -> Iterator[Branch]:
        yield Objects(some=frozenset({Some(ANYTHING, keys=self._not("propertyNames"))}))

    def _of_unevaluatedProperties(self, child: Any) -> Iterable[Branch]:
        return [] if child is True else self._refuse("unevaluatedProperties")

    def _of_dependentRequired(self, dependencies: Mapping[str, list[str]]) -> Iterator[Branch]:
        for name, needs in dependencies.items():
            for need in needs:
                both = conjoin(present(name), absent(self._document, need)) if need != name else None
                yield from () if both is None else (both,)

    def _of_dependentSchemas(self, dependencies: Mapping[str, Any]) -> Iterator[Branch]:
        for name in dependencies:
            yield from self._context.intersect(
                (present(name),), self._context.expand(NOT + self._child("dependentSchemas", name)), self._pointer
            )

    def _of_dependencies(self, dependencies: Mapping[str, Any]) -> Iterator[Branch]:
        for name, needs in dependencies.items():
            if isinstance(needs, list):
                yield from self._of_dependentRequired({name: needs})
            else:
                other = self._context.expand(NOT + self._child("dependencies", name))
                yield from self._context.intersect((present(name),), other, self._pointer)


def _other_counts(kind: type[Strings | Arrays | Objects], is_least: bool, count: int) -> list[Branch]:
    if is_least:
        return [kind(high=count - 1)] if count else []
    return [kind(low=count + 1)]
