"""The control-flow graph of a function: blocks of statements with explicit ends. Loops and `with` are taken apart here, expressions
are left whole."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ramet.compiler.source import FunctionNode


@dataclass(frozen=True, slots=True)
class BeginLoop:
    """Evaluate what a `for` runs over, once."""

    loop: ast.For


@dataclass(frozen=True, slots=True)
class BindItem:
    """Give a `for`'s target its next item."""

    loop: ast.For


@dataclass(frozen=True, slots=True)
class Enter:
    item: ast.withitem


@dataclass(frozen=True, slots=True)
class Leave:
    item: ast.withitem


@dataclass(frozen=True, slots=True)
class Jump:
    to: int


@dataclass(frozen=True, slots=True)
class Branch:
    test: ast.expr
    then: int
    otherwise: int


@dataclass(frozen=True, slots=True)
class NextItem:
    """Go to `body` while the loop has items."""

    loop: ast.For
    body: int
    after: int


@dataclass(frozen=True, slots=True)
class Exit:
    """Return; the contexts in `leaving` are left after `value` is computed."""

    node: ast.AST
    value: ast.expr | None
    leaving: tuple[ast.withitem, ...] = ()


Step: TypeAlias = ast.stmt | BeginLoop | BindItem | Enter | Leave
End: TypeAlias = Jump | Branch | NextItem | Exit


@dataclass(slots=True)
class Node:
    id: int
    steps: list[Step] = field(default_factory=list)
    end: End | None = None

    def successors(self) -> list[int]:
        match self.end:
            case Jump(to):
                return [to]
            case Branch(_, then, otherwise):
                return [then, otherwise]
            case NextItem(_, body, after):
                return [body, after]
        return []


@dataclass(frozen=True, slots=True)
class Graph:
    """Reachable nodes in an order in which, but for loops, each comes after its predecessors."""

    nodes: tuple[Node, ...]

    def predecessors(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for following in node.successors():
                found[following].append(node.id)
        return found


@dataclass(frozen=True, slots=True)
class _LoopExits:
    again: int
    out: int
    depth: int  # how many contexts were open when the loop began


def build_cfg(tree: FunctionNode) -> Graph:
    return _Builder(tree).graph()


class _Builder:
    def __init__(self, tree: FunctionNode) -> None:
        self._tree = tree
        self._nodes: list[Node] = []
        self._loops: list[_LoopExits] = []
        self._contexts: list[ast.withitem] = []

    def graph(self) -> Graph:
        last = self._body(self._tree.body, self._new())
        if last is not None:
            last.end = Exit(self._tree.body[-1], None)
        return Graph(tuple(_ordered(self._nodes)))

    def _new(self) -> Node:
        self._nodes.append(Node(len(self._nodes)))
        return self._nodes[-1]

    def _body(self, statements: Sequence[ast.stmt], node: Node | None) -> Node | None:
        """Adds statements to `node`; returns where control goes on, None if it does not."""
        for statement in statements:
            if node is None:
                return None  # what follows a return or break never runs
            node = self._statement(statement, node)
        return node

    def _statement(self, statement: ast.stmt, node: Node) -> Node | None:
        match statement:
            case ast.If():
                return self._if(statement, node)
            case ast.While():
                return self._while(statement, node)
            case ast.For():
                return self._for(statement, node)
            case ast.With():
                return self._with(statement, node)
            case ast.Return():
                node.end = Exit(statement, statement.value, tuple(reversed(self._contexts)))
                return None
            case ast.Break() | ast.Continue():
                self._leave_loop(statement, node)
                return None
        node.steps.append(statement)
        return node

    def _if(self, statement: ast.If, node: Node) -> Node | None:
        then, otherwise = self._new(), self._new()
        node.end = Branch(statement.test, then.id, otherwise.id)
        ends = [self._body(statement.body, then), self._body(statement.orelse, otherwise)]
        return self._meet([end for end in ends if end is not None])

    def _meet(self, ends: list[Node]) -> Node | None:
        if not ends:
            return None
        after = self._new()
        for end in ends:
            end.end = Jump(after.id)
        return after

    def _while(self, statement: ast.While, node: Node) -> Node:
        header, body, out, after = self._new(), self._new(), self._new(), self._new()
        node.end = Jump(header.id)
        header.end = Branch(statement.test, body.id, out.id)
        return self._loop(statement, header, body, out, after)

    def _for(self, statement: ast.For, node: Node) -> Node:
        header, body, out, after = self._new(), self._new(), self._new(), self._new()
        node.steps.append(BeginLoop(statement))
        node.end = Jump(header.id)
        header.end = NextItem(statement, body.id, out.id)
        body.steps.append(BindItem(statement))
        return self._loop(statement, header, body, out, after)

    def _loop(self, statement: ast.For | ast.While, header: Node, body: Node, out: Node, after: Node) -> Node:
        """`out` is reached when the loop ends by itself and runs its else; a break goes straight to `after`."""
        self._loops.append(_LoopExits(header.id, after.id, len(self._contexts)))
        end = self._body(statement.body, body)
        self._loops.pop()
        if end is not None:
            end.end = Jump(header.id)
        rest = self._body(statement.orelse, out)
        if rest is not None:
            rest.end = Jump(after.id)
        return after

    def _with(self, statement: ast.With, node: Node) -> Node | None:
        for item in statement.items:
            node.steps.append(Enter(item))
            self._contexts.append(item)
        end = self._body(statement.body, node)
        for item in reversed(statement.items):
            self._contexts.pop()
            if end is not None:
                end.steps.append(Leave(item))
        return end

    def _leave_loop(self, statement: ast.Break | ast.Continue, node: Node) -> None:
        loop = self._loops[-1]
        node.steps += [Leave(item) for item in reversed(self._contexts[loop.depth :])]
        node.end = Jump(loop.out if isinstance(statement, ast.Break) else loop.again)


def _ordered(nodes: list[Node]) -> list[Node]:
    order: list[Node] = []
    seen = {0}
    stack = [(nodes[0], iter(nodes[0].successors()))]
    while stack:
        node, pending = stack[-1]
        following = next((each for each in pending if each not in seen), None)
        if following is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(following)
            stack.append((nodes[following], iter(nodes[following].successors())))
    return order[::-1]
