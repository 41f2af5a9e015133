"""Blocks, functions, modules: immutable, so that a compiled module can be cached by content and shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ramet.ir.ops import TERMINATORS, Op, Terminator, results_of
from ramet.ir.types import Location, Type, Value


@dataclass(frozen=True, slots=True)
class Block:
    """Straight-line code; the last op is the only terminator."""

    id: int
    args: tuple[Value, ...]
    ops: tuple[Op, ...]

    @property
    def terminator(self) -> Terminator:
        last = self.ops[-1]
        assert isinstance(last, TERMINATORS)
        return last

    def with_ops(self, ops: list[Op] | tuple[Op, ...]) -> Block:
        return Block(self.id, self.args, tuple(ops))


@dataclass(frozen=True, slots=True)
class Function:
    """The first block is the entry; its arguments are the conversation and then one per parameter."""

    name: str
    params: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def entry(self) -> Block:
        return self.blocks[0]

    def block(self, block_id: int) -> Block:
        return next(block for block in self.blocks if block.id == block_id)

    def ops(self) -> Iterator[Op]:
        for block in self.blocks:
            yield from block.ops

    def with_blocks(self, blocks: list[Block] | tuple[Block, ...]) -> Function:
        return replace(self, blocks=tuple(blocks))

    def definitions(self) -> dict[int, Op]:
        """Value id → the op that makes it (block arguments are not in it)."""
        return {value.id: op for op in self.ops() for value in results_of(op)}


@dataclass(frozen=True, slots=True)
class Source:
    """The user's code that locations point into; `lines[0]` is line `first_line` of `file`."""

    file: str
    first_line: int
    lines: tuple[str, ...]

    def line(self, number: int) -> str:
        index = number - self.first_line
        return self.lines[index] if 0 <= index < len(self.lines) else ""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint known before the program runs; `kind` is regex, json_schema, ebnf or choices (then a JSON list)."""

    kind: str
    source: str


@dataclass(frozen=True, slots=True)
class Module:
    """A whole program; the first function is where it starts."""

    functions: tuple[Function, ...]
    sources: tuple[Source, ...] = ()
    grammars: tuple[Grammar, ...] = ()

    @property
    def main(self) -> Function:
        return self.functions[0]

    def function(self, name: str) -> Function:
        return next(function for function in self.functions if function.name == name)

    def with_functions(self, functions: list[Function] | tuple[Function, ...]) -> Module:
        return replace(self, functions=tuple(functions))

    def num_ops(self) -> int:
        return sum(len(block.ops) for function in self.functions for block in function.blocks)

    def show(self, loc: Location) -> str:
        """`file:line:col`, the source line and a caret under the place."""
        if not loc.line or loc.source >= len(self.sources):
            return "(no source)"
        source = self.sources[loc.source]
        text = source.line(loc.line)
        width = max(1, min(loc.end_col, len(text)) - loc.col)
        return f"{source.file}:{loc.line}:{loc.col + 1}\n  {text}\n  {' ' * loc.col}{'^' * width}"


class ValueNames:
    """Hands out fresh values of one function."""

    def __init__(self, first: int = 0) -> None:
        self._next = first

    @classmethod
    def after(cls, function: Function) -> ValueNames:
        ids = [value.id for block in function.blocks for value in block.args]
        ids += [value.id for op in function.ops() for value in results_of(op)]
        return cls(max(ids, default=-1) + 1)

    def new(self, kind: Type) -> Value:
        self._next += 1
        return Value(self._next - 1, kind)
