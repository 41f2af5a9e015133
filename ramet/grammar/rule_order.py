"""In which order rules can be settled: after those that they refer to. Only rules can lead back to themselves, since the parts of a node
are older than it: circles are looked for among rules, of which there are a tenth as many as nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ramet.grammar.arena import Arena
from ramet.grammar.components import components


class Group(NamedTuple):
    """Nodes of rules that lead to each other or, more often, of a single one: parts before what they are in, and none that an earlier
    group has. `is_circle`: they lead back to themselves."""

    nodes: list[int]
    is_circle: bool


def in_groups(arena: Arena, has_refs: Sequence[int]) -> list[Group]:
    """All nodes with `has_refs`: that are or hold references to rules. What is part of no rule comes last."""
    bodies = [_body(arena, root, has_refs) for root in arena.rules]
    inside = [{arena.nodes[node].of for node in body if arena.nodes[node].op == "ref"} for body in bodies]
    component = components(len(bodies), inside.__getitem__)
    rules: list[list[int]] = [[] for _ in range(max(component, default=-1) + 1)]
    for rule, number in enumerate(component):
        rules[number].append(rule)
    is_placed = bytearray(len(has_refs))
    groups = [Group(_placed(is_placed, (bodies[rule] for rule in some)), len(some) > 1 or some[0] in inside[some[0]]) for some in rules]
    return [*groups, Group([node for node, has in enumerate(has_refs) if has and not is_placed[node]], False)]


def _body(arena: Arena, root: int, has_refs: Sequence[int]) -> set[int]:
    found, queue = set[int](), [root]
    while queue:
        node = queue.pop()
        if has_refs[node] and node not in found:
            found.add(node)
            queue += arena.parts(node)
    return found


def _placed(is_placed: bytearray, bodies: Iterable[set[int]]) -> list[int]:
    fresh = sorted(node for node in set[int]().union(*bodies) if not is_placed[node])
    for node in fresh:
        is_placed[node] = True
    return fresh
