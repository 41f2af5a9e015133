"""free + cached + in use = total: the audit of a cache, and its repair.

`balanced` is O(1) and runs whenever the scheduler falls idle; `audit` walks everything, for tests and to explain an imbalance.
"""

from __future__ import annotations

from collections import Counter

from ramet.log import get_logger
from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.radix_tree import Node

_log = get_logger(__name__)


def balanced(cache: Cache) -> bool:
    """Whether the counts add up, by counters alone."""
    own = sum(len(lease.pages) - lease.num_shared // cache.page_size for lease in cache.leases)
    return cache.allocator.num_free + cache.tree.num_tokens // cache.page_size + own == cache.allocator.num_pages


def audit(cache: Cache) -> list[str]:
    """Everything that is wrong with the cache, in words; [] when all is well."""
    owners = Counter(cache.allocator.free_pages())
    owners.update(page for node in cache.tree.nodes() for page in node.pages.tolist())
    owners.update(page for lease in cache.leases for page in lease.pages[lease.num_shared // cache.page_size :])
    total = cache.allocator.num_pages
    problems = [f"page {page} belongs to nobody" for page in range(total) if not owners[page]]
    problems += [f"page {page} has {count} owners" for page, count in owners.items() if count > 1]
    problems += [f"page {page} does not exist" for page in owners if not 0 <= page < total]
    return problems + _audit_tree(cache) + _audit_leases(cache)


def check_idle(cache: Cache) -> bool:
    """With no request running: log and heal any imbalance. True when there was none. Serving goes on either way."""
    if not cache.leases and balanced(cache):
        return True
    _log.error("KV page accounting was off while idle and has been put right: %s", "; ".join(audit(cache)[:8]) or "leases were left open")
    heal(cache)
    return False


def heal(cache: Cache) -> None:
    """Give back what leases were left holding, and rebuild the free list from what the tree holds."""
    for lease in list(cache.leases):
        lease.pages = lease.pages[: lease.num_shared // cache.page_size]
        cache.release(lease)
    cache.allocator.reset(page for node in cache.tree.nodes() for page in node.pages.tolist())


def _audit_tree(cache: Cache) -> list[str]:
    tree, problems = cache.tree, []
    nodes = list(tree.nodes())
    if sum(len(node.key) for node in nodes) != tree.num_tokens:
        problems.append("the tree miscounts its tokens")
    if sum(len(node.key) for node in nodes if node.lock_count == 0) != tree.num_evictable:
        problems.append("the tree miscounts its evictable tokens")
    if sum(len(node.key) for node in nodes if node.lock_count == 0 and node.num_pins) != tree.num_pinned:
        problems.append("the tree miscounts its pinned tokens")
    for node in nodes:
        if len(node.key) != len(node.pages) * tree.page_size or not len(node.key):
            problems.append(f"a node has {len(node.key)} tokens on {len(node.pages)} pages")
        if node.parent is None or node.parent.children.get(node.key[: tree.page_size].tobytes()) is not node:
            problems.append("a node is not where its parent looks for it")
        if node.num_pins != len(node.pins) + sum(child.num_pins for child in node.children.values()):
            problems.append("a node miscounts the pins at or below it")
        if any(pin.node is not node or pin.owner != owner for owner, pin in node.pins.items()):
            problems.append("a pin is not where it ends")
        if node.is_dead and (node.lock_count or node.pins or not all(child.is_dead for child in node.children.values())):
            problems.append("a node counts as dead that somebody uses")
    return problems


def _audit_leases(cache: Cache) -> list[str]:
    problems = []
    expected: Counter[int] = Counter()
    for lease in cache.leases:
        if lease.node is None:
            continue
        if cache.tree.pages_to(lease.node) != lease.pages[: lease.num_shared // cache.page_size]:
            problems.append("a lease's shared pages are not the tree's")
        node: Node | None = lease.node
        while node is not None:
            expected[id(node)] += 1
            node = node.parent
    problems += ["a node's locks are not those of its leases" for node in cache.tree.nodes() if node.lock_count != expected[id(node)]]
    return problems
