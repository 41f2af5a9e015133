"""Shared beginnings are computed once: the program's constant prefix stands alone at its head, where a server finds and warms it; and
text that every branch of a fork begins with moves into the fork, which prefills it before the branches go apart."""

from __future__ import annotations

from dataclasses import replace

from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import each_function, scalars, use_counts
from ramet.ir.module import Block, Function, Module, ValueNames
from ramet.ir.ops import Append, Const, Fork, Op, results_of
from ramet.ir.types import Type, Value


def hoist_prefix(module: Module, notes: Notes) -> Module:
    changed = each_function(module, lambda function: _into_forks(function, notes))
    main = _split_prefix(changed.main, notes)
    return changed if main is changed.main else changed.with_functions((main, *changed.functions[1:]))


def _split_prefix(function: Function, notes: Notes) -> Function:
    """Cuts the first append of the program after its last leading constant."""
    known = scalars(function)
    block = function.entry
    for position, op in enumerate(block.ops):
        if not isinstance(op, Append) or op.state != block.args[0]:
            continue
        cut, num_texts = 0, 0
        for piece in op.shape:
            if piece == "text" and op.texts[num_texts].id not in known:
                break
            cut, num_texts = cut + 1, num_texts + (piece == "text")
        size = sum(len(str(known[text.id])) for text in op.texts[:num_texts])
        if num_texts:
            notes.did(op.loc, f"the program begins with {size} characters that never change; they are computed once, not per run")
        if not num_texts or cut == len(op.shape):
            return function
        middle = ValueNames.after(function).new(Type.STATE)
        first = replace(op, shape=op.shape[:cut], texts=op.texts[:num_texts], out=middle)
        rest = replace(op, state=middle, shape=op.shape[cut:], texts=op.texts[num_texts:])
        entry = block.with_ops([*block.ops[:position], first, rest, *block.ops[position + 1 :]])
        return function.with_blocks([entry, *function.blocks[1:]])
    return function


def _into_forks(function: Function, notes: Notes) -> Function:
    uses = use_counts(function)
    blocks = [_fork_prefixes(block, uses, notes) for block in function.blocks]
    return function if all(new is old for new, old in zip(blocks, function.blocks, strict=True)) else function.with_blocks(blocks)


def _fork_prefixes(block: Block, uses: dict[int, int], notes: Notes) -> Block:
    """`forks = s.fork(n); forks += text`: the append on the whole group joins the fork."""
    ops: list[Op] = list(block.ops)
    for position, op in enumerate(block.ops):
        if not isinstance(op, Fork) or uses[op.group.id] != 1:
            continue
        found = next((each for each in ops if isinstance(each, Append) and each.state == op.group), None)
        constants = [each for each in block.ops[position:] if isinstance(each, Const) and found is not None and each.out in found.texts]
        if found is None or not _known_before(block, position, found, {each.out for each in constants}):
            continue
        hoisted = replace(op, texts=op.texts + found.texts, shape=op.shape + found.shape, group=found.out, prefetch=True)
        moved: list[Op] = [*constants, hoisted]
        kept = [each for each in ops if each is not found and not any(each is constant for constant in constants)]
        ops = [new for each in kept for new in (moved if each is op else [each])]
        notes.did(found.loc, "every branch begins with this: it is prefilled once, before the fork")
    return block if len(ops) == len(block.ops) else block.with_ops(ops)


def _known_before(block: Block, position: int, append: Append, constants: set[Value]) -> bool:
    """Are the texts computed before the fork, or constants? (Nothing between may need the group: it has one use.)"""
    later: set[Value] = {value for op in block.ops[position:] for value in results_of(op)}
    return not any(text in later - constants for text in append.texts)
