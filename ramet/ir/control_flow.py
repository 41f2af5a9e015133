"""Facts about a function's graph of blocks: order, reachability, dominance, loops."""

from __future__ import annotations

from ramet.ir.module import Function
from ramet.ir.ops import targets_of


def successors(function: Function) -> dict[int, list[int]]:
    return {block.id: list(dict.fromkeys(target.block for target in targets_of(block.terminator))) for block in function.blocks}


def predecessors(function: Function) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {block.id: [] for block in function.blocks}
    for block, nexts in successors(function).items():
        for following in nexts:
            found[following].append(block)
    return found


def reverse_postorder(function: Function) -> list[int]:
    """Block ids, each before its successors but for loops' back edges; unreachable blocks are left out."""
    nexts = successors(function)
    order: list[int] = []
    seen = {function.entry.id}
    stack = [(function.entry.id, iter(nexts[function.entry.id]))]
    while stack:
        block, pending = stack[-1]
        following = next((each for each in pending if each not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(nexts[following])))
    return order[::-1]


def dominators(function: Function) -> dict[int, int]:
    """Reachable block → its immediate dominator (the entry's is itself). Cooper, Harvey, Kennedy: "A Simple, Fast Dominance Algorithm"."""
    order = reverse_postorder(function)
    rank = {block: position for position, block in enumerate(order)}
    before = predecessors(function)
    found = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [each for each in before[block] if each in found]
            new = known[0]
            for other in known[1:]:
                new = _meet(found, rank, new, other)
            changed |= found.get(block) != new
            found[block] = new
    return found


def _meet(found: dict[int, int], rank: dict[int, int], left: int, right: int) -> int:
    while left != right:
        while rank[left] > rank[right]:
            left = found[left]
        while rank[right] > rank[left]:
            right = found[right]
    return left


def dominates(idoms: dict[int, int], above: int, below: int) -> bool:
    while below != above and idoms[below] != below:
        below = idoms[below]
    return below == above


def dominator_spans(idoms: dict[int, int]) -> dict[int, tuple[int, int]]:
    """Block → its place in a walk of the dominator tree, and the last place below it: what it dominates lies between."""
    children: dict[int, list[int]] = {block: [] for block in idoms}
    roots = [block for block, above in idoms.items() if above == block]
    for block, above in idoms.items():
        if above != block:
            children[above].append(block)
    first: dict[int, int] = {}
    spans: dict[int, tuple[int, int]] = {}
    stack = [(root, False) for root in roots]
    while stack:
        block, done = stack.pop()
        if done:
            spans[block] = (first[block], len(first) - 1)
            continue
        first[block] = len(first)
        stack.append((block, True))
        stack.extend((child, False) for child in children[block])
    return spans


def reachable(nexts: dict[int, list[int]], start: int, avoid: int | None = None) -> set[int]:
    """Blocks that a path of one or more edges from `start` leads to, without going on through `avoid`."""
    seen: set[int] = set()
    stack = list(nexts[start])
    while stack:
        block = stack.pop()
        if block in seen or block == avoid:
            continue
        seen.add(block)
        stack.extend(nexts[block])
    return seen


def blocks_in_loops(function: Function) -> set[int]:
    nexts = successors(function)
    return {block.id for block in function.blocks if block.id in reachable(nexts, block.id)}
