"""In which order rules can be settled: after those that they refer to. Only rules can lead back to themselves, since the parts of a node
are older than it: circles are looked for among rules, of which there are a tenth as many as nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ramet.grammar.arena import Arena
from ramet.grammar.components import circles


class Group(NamedTuple):
    """Nodes of rules that lead to each other or, more often, of a single one: parts before what they are in, and none that an earlier
    group has. `is_circle`: they lead back to themselves."""

    nodes: list[int]
    is_circle: bool


def in_groups(arena: Arena, has_refs: Sequence[int]) -> list[Group]:
    """All nodes with `has_refs`: that are or hold references to rules. What is part of no rule comes last."""
    bodies, inside = [], []
    for root in arena.rules:
        body, refs = _body(arena, root, has_refs)
        bodies.append(body)
        inside.append(refs)
    groups, is_left = [], bytearray(has_refs)
    for rules in circles(len(bodies), inside.__getitem__):
        nodes = bodies[rules[0]] if len(rules) == 1 else set[int]().union(*(bodies[rule] for rule in rules))
        fresh = sorted([node for node in nodes if is_left[node]])
        for node in fresh:
            is_left[node] = False
        groups.append(Group(fresh, len(rules) > 1 or rules[0] in inside[rules[0]]))
    return [*groups, Group([node for node, left in enumerate(is_left) if left], False)]


def _body(arena: Arena, root: int, has_refs: Sequence[int]) -> tuple[set[int], set[int]]:
    """Nodes with references, and the rules that these are to."""
    nodes, parts = arena.nodes, arena.parts
    found, refs, queue = set[int](), set[int](), [root] if has_refs[root] else []
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            op, of = nodes[node]
            if op == "ref":
                refs.add(of)
            else:
                queue += [part for part in parts(node) if has_refs[part]]
    return found, refs
