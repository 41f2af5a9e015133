"""Adjacent appends become one, so that constant text between two generations is one prefill together with the second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import Scalar, each_function, scalars, use_counts
from ramet.ir.module import Block, Function, Module, ValueNames
from ramet.ir.ops import Append, Const, Op
from ramet.ir.types import Type, Value


def merge_text(module: Module, notes: Notes) -> Module:
    return each_function(module, lambda function: _merge(function, notes))


def _merge(function: Function, notes: Notes) -> Function:
    uses, names, known = use_counts(function), ValueNames.after(function), scalars(function)
    blocks = [_merge_block(block, uses, names, known, notes) for block in function.blocks]
    return function if all(new is old for new, old in zip(blocks, function.blocks, strict=True)) else function.with_blocks(blocks)


def _merge_block(block: Block, uses: dict[int, int], names: ValueNames, known: dict[int, Scalar], notes: Notes) -> Block:
    held: dict[int, Append] = {}  # appends not yet written out, by the state that they yield
    ops: list[Op] = []
    for op in block.ops:
        if isinstance(op, Append):
            first = held.pop(op.state.id, None)
            if first is not None and _clash(first.shape, op.shape):
                ops += _joined(first, names, known)  # it fails when it runs, at its own line
                first = None
            if first is not None:
                op = replace(op, state=first.state, texts=first.texts + op.texts, shape=first.shape + op.shape, loc=first.loc)
            if uses[op.out.id] == 1 and _next_is_append(block, op.out):
                held[op.out.id] = op
                continue
            ops += _joined(op, names, known)
            continue
        ops.append(op)
    assert not held
    if len(ops) == len(block.ops):
        return block
    notes.did(block.ops[0].loc, f"{len(block.ops) - len(ops)} ops fewer: text that follows text is appended at once")
    return block.with_ops(ops)


def _clash(first: Sequence[str], second: Sequence[str]) -> bool:
    """Would the second one's first border of a turn be refused after the first one's last?"""
    before = next((piece for piece in reversed(first) if piece != "text"), None)
    after = next((piece for piece in second if piece != "text"), None)
    if before is None or after is None:
        return False
    is_open = before.startswith("begin:")
    return after != f"end:{before.removeprefix('begin:')}" if is_open else after.startswith("end:")


def _next_is_append(block: Block, state: Value) -> bool:
    return any(isinstance(op, Append) and op.state == state for op in block.ops)


def _joined(op: Append, names: ValueNames, known: dict[int, Scalar]) -> list[Op]:
    """Constant texts side by side become one constant."""
    shape: list[str] = []
    texts: list[Value] = []
    made: list[Op] = []
    pending = iter(op.texts)
    for piece in op.shape:
        text = next(pending) if piece == "text" else None
        if (
            text is not None
            and shape
            and shape[-1] == "text"
            and isinstance(known.get(text.id), str)
            and isinstance(known.get(texts[-1].id), str)
        ):
            out = names.new(Type.TEXT)
            known[out.id] = str(known[texts[-1].id]) + str(known[text.id])
            made.append(Const(out=out, value=known[out.id], loc=op.loc))
            texts[-1] = out
            continue
        shape.append(piece)
        texts += [text] if text is not None else []
    return [*made, replace(op, shape=tuple(shape), texts=tuple(texts))]
