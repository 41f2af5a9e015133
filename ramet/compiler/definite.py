"""Which reads of a local variable may come before any assignment to it: a forward analysis over the graph of statements."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ramet.compiler.cfg import BeginLoop, BindItem, Branch, Enter, Exit, Graph, Leave, NextItem, Node, Step

Names = frozenset[str]


def unbound_reads(graph: Graph, params: Names) -> frozenset[ast.Name]:
    """Name nodes that may find nothing; Python raises UnboundLocalError there, and so does the program."""
    before = _assigned_before(graph, params)
    found: set[ast.Name] = set()
    for node in graph.nodes:
        known = set(before[node.id])
        for part in _parts(node):
            found |= {name for name in _reads(part) if name.id not in known}
            known |= _writes(part)
    return frozenset(found)


def _assigned_before(graph: Graph, params: Names) -> dict[int, Names]:
    """Per node, the names assigned on every path to it."""
    predecessors = graph.predecessors()
    writes = {node.id: frozenset[str]().union(*(_writes(part) for part in _parts(node))) for node in graph.nodes}
    before: dict[int, Names | None] = {node.id: None for node in graph.nodes}
    before[graph.nodes[0].id] = params
    after: dict[int, Names] = {}
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            known = [after[each] for each in predecessors[node.id] if each in after]
            entry = before[node.id] if not known else frozenset.intersection(*known)
            assert entry is not None
            leaving = entry | writes[node.id]
            changed |= after.get(node.id) != leaving
            before[node.id], after[node.id] = entry, leaving
    return {node: names or frozenset() for node, names in before.items()}


def _parts(node: Node) -> Iterator[Step | ast.expr]:
    yield from node.steps
    match node.end:
        case Branch(test, _, _):
            yield test
        case Exit(_, ast.expr() as value, _):
            yield value
        case NextItem():
            return


def _trees(part: Step | ast.expr) -> Iterator[ast.AST]:
    match part:
        case BeginLoop(loop):
            yield loop.iter
        case BindItem(loop):
            yield loop.target
        case Enter(item):
            yield item
        case Leave():
            return
        case _:
            yield part


def _reads(part: Step | ast.expr) -> set[ast.Name]:
    found = set()
    for tree in _trees(part):
        inner = {name.id for node in ast.walk(tree) for name in _own_targets(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id not in inner and (isinstance(node.ctx, ast.Load) or isinstance(part, ast.AugAssign)):
                found.add(node)
    return found


def _own_targets(node: ast.AST) -> Iterator[ast.Name]:
    """Names that a comprehension binds for itself."""
    if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp):
        for generator in node.generators:
            yield from (name for name in ast.walk(generator.target) if isinstance(name, ast.Name))
    elif isinstance(node, ast.Lambda):
        yield from (ast.Name(argument.arg) for argument in node.args.args)


def _writes(part: Step | ast.expr) -> set[str]:
    return {node.id for tree in _trees(part) for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
