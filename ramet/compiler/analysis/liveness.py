"""Which values are still needed where."""

from __future__ import annotations

from ramet.ir.control_flow import successors
from ramet.ir.module import Function
from ramet.ir.ops import operands_of, results_of
from ramet.ir.types import Value


def live_out(function: Function) -> dict[int, frozenset[Value]]:
    """Block → values that some path from its end uses before it makes them anew."""
    nexts = successors(function)
    live_in: dict[int, frozenset[Value]] = {block.id: frozenset() for block in function.blocks}
    out: dict[int, frozenset[Value]] = dict(live_in)
    changed = True
    while changed:
        changed = False
        for block in reversed(function.blocks):
            out[block.id] = frozenset().union(*(live_in[following] for following in nexts[block.id]))
            alive = set(out[block.id])
            for op in reversed(block.ops):
                alive -= set(results_of(op))
                alive |= set(operands_of(op))
            found = frozenset(alive - set(block.args))
            changed |= found != live_in[block.id]
            live_in[block.id] = found
    return out
