"""What is settled in groups of rules, held against a fixpoint over all nodes at once, which knows no order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ramet.errors import GrammarError
from ramet.grammar.arena import INFINITE, Arena
from ramet.grammar.char_ranges import json_words, utf8_words
from ramet.grammar.derivatives import Walker
from ramet.grammar.json_layout import Layout
from ramet.grammar.lowering import parse_schema
from ramet.grammar.rule_order import in_groups
from ramet.grammar.schema_lowering import lower_schema
from tests.grammar.random_schemas import RandomSchemas

REAL = [json.loads(line)["schema"] for line in (Path(__file__).parent / "real_schemas.jsonl").read_text().splitlines()]
RANDOM = [RandomSchemas(seed).schema() for seed in range(200)]
RECURSIVE = [
    {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    {"anyOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}, {"$ref": "#/$defs/b"}], "$defs": {"b": {"items": {"$ref": "#"}}}},
    {"type": "array", "prefixItems": [{"$ref": "#/$defs/a"}], "minItems": 1, "$defs": {"a": {"items": {"$ref": "#"}, "minItems": 2}}},
]


@pytest.mark.parametrize("schemas", [REAL, RANDOM, RECURSIVE], ids=["real", "random", "recursive"])
def test_groups_settle_what_a_fixpoint_over_all_nodes_settles(schemas: list[Any]) -> None:
    assert sum(map(compare, schemas)) > len(schemas) / 2


def compare(schema: Any) -> bool:
    """Whether there was anything to compare."""
    arena = lowered(schema)
    if arena is None or any(op == "fresh" for op, _ in arena.nodes):
        return False  # how long series are depends on their items' texts
    walker = Walker(arena)
    nodes = range(walker.num_settled)
    nullable = fixpoint([False] * len(nodes), lambda node, known: is_nullable(arena, node, known))
    assert walker.settled[0] == nullable, schema
    searched = {node: walker.shortest(node) for node in nodes if arena.nodes[node].op in ("conj", "negate")}
    lengths = fixpoint([INFINITE] * len(nodes), lambda node, known: length_of(arena, node, known, nullable, searched))
    assert [walker.shortest(node) for node in nodes] == lengths, schema
    return True


def lowered(schema: Any) -> Arena | None:
    arena = Arena()
    try:
        lower_schema(arena, Layout(arena), parse_schema(json.dumps(schema)))
    except GrammarError:
        return None
    return arena


def fixpoint(known: list[Any], find: Callable[[int, list[Any]], Any]) -> list[Any]:
    changed = True
    while changed:
        changed = False
        for node in reversed(range(len(known))):  # the worst order that there is
            found = find(node, known)
            changed = changed or found != known[node]
            known[node] = found
    return known


def is_nullable(arena: Arena, node: int, known: list[bool]) -> bool:
    op, of = arena.nodes[node]
    inside = [known[part] for part in followed(arena, node)]
    if op in ("seq", "conj", "ref", "lexeme"):
        return all(inside)
    if op == "rep":
        return bool(of[1] == 0 or inside[0])
    return op == "epsilon" or (not inside[0] if op == "negate" else any(inside))


def length_of(arena: Arena, node: int, known: list[int], nullable: list[bool], searched: dict[int, int]) -> int:
    op, of = arena.nodes[node]
    inside = [known[part] for part in followed(arena, node)]
    if nullable[node]:
        return 0
    if op in ("text", "word"):
        return len(of)
    if op == "chars":
        return min(map(len, json_words(of[0]) if of[1] else utf8_words(of[0])))
    if node in searched:
        return searched[node]
    found = sum(inside) if op == "seq" else min(inside, default=INFINITE) * (of[1] if op == "rep" else 1)
    return min(found, INFINITE)


def followed(arena: Arena, node: int) -> tuple[int, ...]:
    op, of = arena.nodes[node]
    return (arena.rules[of],) if op == "ref" else arena.parts(node)


@pytest.mark.parametrize("schema", RECURSIVE, ids=json.dumps)
def test_every_node_with_references_is_in_one_group_after_what_it_leads_to(schema: Any) -> None:
    arena = lowered(schema)
    assert arena is not None
    has_refs = [any(arena.nodes[inside].op == "ref" for inside in whole(arena, node)) for node in range(len(arena.nodes))]
    groups = in_groups(arena, has_refs)
    assert sorted(node for group in groups for node in group.nodes) == [node for node, has in enumerate(has_refs) if has]
    assert any(group.is_circle for group in groups)
    place = {node: number for number, group in enumerate(groups) for node in group.nodes}
    for node, number in place.items():
        for part in followed(arena, node):
            before = place.get(part, -1)
            assert before < number or (before == number and (part < node or groups[number].is_circle))


def whole(arena: Arena, node: int) -> set[int]:
    found, queue = {node}, [node]
    while queue:
        fresh = set(arena.parts(queue.pop())) - found
        found |= fresh
        queue += fresh
    return found
