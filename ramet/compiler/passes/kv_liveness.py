"""The last use of every conversation is a static fact: this pass writes it down. `free` stands after the last use; `pin` before a host
call that a conversation outlives; and where text was appended just before the wait, `prefetch`: it is prefilled while the host works."""

from __future__ import annotations

from collections import defaultdict

from ramet.compiler.analysis.liveness import live_out
from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import each_function
from ramet.ir.control_flow import blocks_in_loops, dominates, dominators
from ramet.ir.module import Block, Function, Module
from ramet.ir.ops import (
    Append,
    Free,
    HostCall,
    Op,
    Pin,
    Prefetch,
    Return,
    Take,
    consumed_by,
    operands_of,
    results_of,
)
from ramet.ir.types import Type, Value

MAX_PINS = 8


def kv_liveness(module: Module, notes: Notes) -> Module:
    return each_function(module, lambda function: _frees(_around_host_calls(function, notes), notes))


def _around_host_calls(function: Function, notes: Notes) -> Function:
    if not any(isinstance(op, HostCall) for op in function.ops()):
        return function
    live, made = live_out(function), function.definitions()
    blocks = [_with_pins(block, live[block.id], made, notes) for block in function.blocks]
    return function.with_blocks(blocks)


def _with_pins(block: Block, live: frozenset[Value], made: dict[int, Op], notes: Notes) -> Block:
    alive, ops = set(live), []
    for op in reversed(block.ops):
        alive -= set(results_of(op))
        ops.append(op)
        if isinstance(op, HostCall):
            waiting = sorted((value for value in alive if value.type is Type.STATE), key=lambda value: value.id)
            for state in waiting[:MAX_PINS]:
                fresh = isinstance(made.get(state.id), Append)
                ops.append(Prefetch(state=state, loc=op.loc) if fresh else Pin(state=state, loc=op.loc))
                notes.did(
                    op.loc, "the conversation is prefilled while the host works" if fresh else "the conversation's KV waits for the host"
                )
        alive |= set(operands_of(op))
    return block.with_ops(ops[::-1])


def _frees(function: Function, notes: Notes) -> Function:
    """States that nothing continues. A branch of a group that was only looked at belongs to its group."""
    consumed = {value.id for op in function.ops() for value in consumed_by(op)}
    looping = blocks_in_loops(function)
    homes = {value: block for block in function.blocks for op in block.ops for value in results_of(op) if not isinstance(op, Take)}
    ended: dict[int, list[Value]] = defaultdict(list)
    for value, block in homes.items():
        if not value.type.linear or value.id in consumed:
            continue
        users = {each.id for each in function.blocks for op in each.ops if value in operands_of(op)}
        if users <= {block.id}:
            ended[block.id].append(value)
        elif block.id not in looping:
            for exit_id in _exits(function, block.id):
                ended[exit_id].append(value)
    if not ended:
        return function
    return function.with_blocks([_with_frees(block, ended[block.id], notes) for block in function.blocks])


def _exits(function: Function, home: int) -> list[int]:
    idoms = dominators(function)
    exits = [block.id for block in function.blocks if isinstance(block.terminator, Return) and block.id in idoms]
    return [each for each in exits if dominates(idoms, home, each)]


def _with_frees(block: Block, ended: list[Value], notes: Notes) -> Block:
    """Right after the last op that looks at the value or makes it; before the end of the block if that is elsewhere."""
    after: dict[int, list[Value]] = defaultdict(list)
    for value in ended:
        touching = [i for i, op in enumerate(block.ops[:-1]) if value in operands_of(op) or value in results_of(op)]
        after[touching[-1] if touching else len(block.ops) - 2].append(value)
    ops: list[Op] = [Free(state=value, loc=block.terminator.loc) for value in after.get(-1, [])]
    for position, op in enumerate(block.ops):
        ops.append(op)
        for value in after.get(position, []):
            ops.append(Free(state=value, loc=op.loc))
            notes.did(op.loc, "the last use of a conversation: its KV may go")
    return block.with_ops(ops)
