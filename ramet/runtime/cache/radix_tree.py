"""Token sequences that share prefixes, and the KV pages that hold them.

    root ""─┬─ [system prompt] ──┬─ [question 1] ── [answer 1]
            │                    └─ [question 2]
            └─ [another start]
    root "tenant-a" ── …            one root per namespace

An edge (stored in the node below it) is a run of whole pages: its tokens and, per page, a page id. Children are told apart by
their first page of tokens, so two sequences that differ within a page share nothing from that page on.
A lock on a node holds the node and all its ancestors; what no one holds may be cut away, page by page, from the leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.int32]
PageArray = npt.NDArray[np.int32]

_NOTHING: TokenArray = np.empty(0, dtype=np.int32)


@dataclass(slots=True, eq=False)
class Pin:
    """Somebody's wish that the prefix up to the end of `node` stays cached until its next use. It protects, it does not lock: under
    pressure pinned prefixes go too, the one whose next use is farthest first. One of which a part was cut away protects nothing any more:
    better one run computes all of its KV again than each run a part of it. `node` is None when it was cut or taken back."""

    owner: str
    node: Node | None
    next_use: float  # on the clock of whoever pins
    since: float
    expires: float
    waits_for_host: bool = False


class Node:
    """One edge and the place where it ends. `lock_count`: holders at or below. Times are ticks of the tree's own clock.

    `owner` is the run that alone has used it ("" where nobody said who), None once two have. `is_dead`: that run has said that it was
    its last use. `pins`, by owner, are those that end here; `num_pins` counts those at or below.
    """

    __slots__ = (
        "children",
        "created",
        "entry",
        "hits",
        "is_dead",
        "key",
        "last_access",
        "lock_count",
        "namespace",
        "num_pins",
        "owner",
        "pages",
        "parent",
        "pins",
    )

    def __init__(self, namespace: str, parent: Node | None, key: TokenArray, pages: PageArray, tick: int) -> None:
        self.namespace = namespace
        self.parent = parent
        self.key = key
        self.pages = pages
        self.children: dict[bytes, Node] = {}
        self.lock_count = 0
        self.hits = 0
        self.created = tick
        self.last_access = tick
        self.entry: tuple[tuple[int, ...], int] | None = None  # the eviction queue's: (key, serial number)
        self.owner: str | None = ""
        self.is_dead = False
        self.pins: dict[str, Pin] = {}
        self.num_pins = 0

    @property
    def is_idle_leaf(self) -> bool:
        """May be evicted now."""
        return not self.children and self.lock_count == 0 and self.parent is not None and len(self.key) > 0


@dataclass(frozen=True, slots=True)
class Insertion:
    """`node`: where the inserted tokens end. `shared_pages`: the tree's own pages for the tokens that it had already."""

    node: Node
    shared_pages: list[int]


class RadixTree:
    """`on_idle_leaf` is told of every node at the moment in which it becomes evictable, and of an evictable one when its worth changes."""

    def __init__(self, page_size: int, on_idle_leaf: Callable[[Node], None] | None = None) -> None:
        self.page_size = page_size
        self.num_tokens = 0
        self.num_evictable = 0
        self.num_pinned = 0  # evictable ones among them
        self.version = 0  # changes whenever a match could give another answer
        self._on_idle_leaf = on_idle_leaf
        self._roots: dict[str, Node] = {}
        self.tick = 0

    def match(self, namespace: str, tokens: TokenArray) -> tuple[Node, int]:
        """The longest cached prefix of `tokens`: the node where it ends (an edge is split if need be) and its length."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(namespace, None, _NOTHING, _NOTHING, self.tick)
        node, inside, matched = self._descend(root, tokens)
        return self._split(node, inside), matched

    def peek(self, namespace: str, tokens: TokenArray) -> tuple[Node | None, int]:
        """As `match`, but changes nothing; the match may end inside the returned node."""
        root = self._roots.get(namespace)
        if root is None:
            return None, 0
        node, _, matched = self._descend(root, tokens)
        return node, matched

    def insert(self, node: Node, tokens: TokenArray, pages: Sequence[int], owner: str = "") -> Insertion:
        """Add `tokens` (whole pages) below `node`. The tree takes the pages of what was new; the first `len(shared_pages)` of the
        caller's pages were not taken."""
        end, inside, matched = self._descend(node, tokens)
        end = self._split(end, inside)
        shared_pages = self._pages_between(node, end)
        if matched < len(tokens):
            end = self._add_leaf(end, tokens[matched:].copy(), np.array(pages[len(shared_pages) :], dtype=np.int32))
            end.owner = owner
        return Insertion(end, shared_pages)

    def lock(self, node: Node, above: Node | None = None, owner: str = "") -> None:
        """Hold `node` and its ancestors for `owner`; with `above`, only those below `above`, which the caller holds already."""
        self.tick += 1
        current: Node | None = node
        while current is not None and current is not above:
            if current.lock_count == 0:
                self._count_idle(current, -len(current.key))
            current.lock_count += 1
            current.last_access = self.tick
            current.hits += 1
            current.is_dead = False
            if current.owner != owner:
                current.owner = None
            current = current.parent

    def unlock(self, node: Node) -> None:
        current: Node | None = node
        while current is not None:
            current.lock_count -= 1
            assert current.lock_count >= 0, "a node was unlocked more often than locked"
            if current.lock_count == 0:
                self._count_idle(current, len(current.key))
                self._now_idle(current)
            current = current.parent

    def pin(self, pin: Pin) -> None:
        """Begin to count `pin`, which ends at its node; one of the same owner at the same place is replaced."""
        node = pin.node
        assert node is not None
        before = node.pins.pop(pin.owner, None)
        node.pins[pin.owner] = pin
        if before is not None:
            before.node = None
        else:
            self._count_pins(node, 1)
        self._now_idle(node)

    def unpin(self, pin: Pin) -> None:
        """Does nothing for a pin of which nothing is left."""
        node, pin.node = pin.node, None
        if node is not None:
            del node.pins[pin.owner]
            self._count_pins(node, -1)
            self._now_idle(node)

    def bury(self, node: Node, owner: str) -> None:
        """`owner` has used `node` for the last time: what only it has used goes first, up to where something lives."""
        current: Node | None = node
        while current is not None and current.parent is not None:
            pin = current.pins.get(owner)
            if pin is not None:
                self.unpin(pin)
            alone = current.owner == owner and not current.lock_count and not current.num_pins
            if not alone or not all(child.is_dead for child in current.children.values()):
                return
            current.is_dead = True
            self._now_idle(current)
            current = current.parent

    def trim(self, leaf: Node, num_pages: int) -> list[int]:
        """Cut up to `num_pages` pages off the end of an idle leaf and return them; an empty leaf leaves the tree."""
        assert leaf.is_idle_leaf, "only an unlocked leaf can be evicted"
        for pin in list(leaf.pins.values()):
            self.unpin(pin)
        keep = max(0, len(leaf.pages) - num_pages)
        freed: list[int] = leaf.pages[keep:].tolist()
        num_tokens = len(freed) * self.page_size
        self.num_tokens -= num_tokens
        self._count_idle(leaf, -num_tokens)
        self.version += 1
        if keep == 0:
            self._detach(leaf)
        else:
            leaf.pages = leaf.pages[:keep]
            leaf.key = leaf.key[: keep * self.page_size]
            self._now_idle(leaf)
        return freed

    def pages_to(self, node: Node) -> list[int]:
        """Pages of the whole sequence that ends at `node`, in order."""
        return self._pages_between(None, node)

    def sequence_to(self, node: Node) -> tuple[TokenArray, list[int]]:
        """Tokens and pages of the whole sequence that ends at `node`."""
        keys: list[TokenArray] = []
        current: Node | None = node
        while current is not None:
            keys.append(current.key)
            current = current.parent
        return np.concatenate(keys[::-1]), self.pages_to(node)

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots; for audits."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            yield node

    def namespaces(self, most: int) -> list[str]:
        return list(islice(self._roots, most))

    def continuation(self, namespace: str, tokens: TokenArray, most: int) -> tuple[int, TokenArray]:
        """How far `tokens` agree with anything here, to the token and not to the page, and up to `most` tokens of how the nearest sequence
        goes on from there (along the branches used last)."""
        root = self._roots.get(namespace)
        if root is None:
            return 0, _NOTHING
        node, inside, matched = self._descend(root, tokens)
        rest, below = tokens[matched:], node.key[inside:]
        if inside == len(node.key):
            children = [*islice(node.children.values(), 64)]
            part_of_page = self.page_size > 1  # some child may agree with the first tokens of its first page
            node = max(children, key=lambda child: (part_of_page and _common_len(child.key, rest), child.last_access), default=node)
            below = node.key if children else _NOTHING
        shared = _common_len(below, rest)
        found = [below[shared:]]
        while sum(map(len, found)) < most and node.children and len(below):
            node = max(islice(node.children.values(), 64), key=lambda child: child.last_access)
            found.append(node.key)
        return matched + shared, np.concatenate(found)[:most]

    @property
    def num_namespaces(self) -> int:
        return len(self._roots)

    def _descend(self, node: Node, tokens: TokenArray) -> tuple[Node, int, int]:
        """Follow `tokens` below `node`: the last node touched, tokens matched inside it, tokens matched in all."""
        size, total, matched = self.page_size, len(tokens), 0
        while total - matched >= size:
            child = node.children.get(tokens[matched : matched + size].tobytes())
            if child is None:
                break
            shared = self._shared_len(child.key, tokens[matched:])
            matched += shared
            node = child
            if shared < len(child.key):
                return node, shared, matched
        return node, len(node.key), matched

    def _shared_len(self, key: TokenArray, tokens: TokenArray) -> int:
        """Length of the common prefix, in whole pages; the first page is known to agree."""
        length = _common_len(key, tokens)
        return length - length % self.page_size

    def _split(self, node: Node, length: int) -> Node:
        """Make `length` tokens of `node`'s edge a node of their own and return it. The old object stays the lower part, so
        that whoever holds it still holds the end of its own sequence."""
        if length == len(node.key):
            return node
        parent = node.parent
        assert parent is not None, "a root has no edge to split"
        num_pages = length // self.page_size
        head = Node(node.namespace, parent, node.key[:length], node.pages[:num_pages], node.created)
        head.lock_count, head.hits, head.last_access = node.lock_count, node.hits, node.last_access
        head.owner, head.is_dead, head.num_pins = node.owner, node.is_dead, node.num_pins
        parent.children[self._branch(head.key)] = head
        node.key, node.pages, node.parent = node.key[length:], node.pages[num_pages:], head
        head.children[self._branch(node.key)] = node
        return head

    def _add_leaf(self, parent: Node, key: TokenArray, pages: PageArray) -> Node:
        self.tick += 1
        leaf = Node(parent.namespace, parent, key, pages, self.tick)
        parent.children[self._branch(key)] = leaf
        self.num_tokens += len(key)
        self.num_evictable += len(key)
        self.version += 1
        self._now_idle(leaf)
        return leaf

    def _detach(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None, "a root is not evicted"
        del parent.children[self._branch(leaf.key)]
        leaf.parent = None
        self._now_idle(parent)

    def _count_pins(self, node: Node, change: int) -> None:
        current: Node | None = node
        while current is not None:
            was_pinned = current.num_pins > 0
            current.num_pins += change
            current.is_dead = current.is_dead and change < 0
            if current.lock_count == 0:
                self.num_pinned += ((current.num_pins > 0) - was_pinned) * len(current.key)
            current = current.parent

    def _count_idle(self, node: Node, change: int) -> None:
        self.num_evictable += change
        if node.num_pins:
            self.num_pinned += change

    def _now_idle(self, node: Node) -> None:
        if node.is_idle_leaf:
            if self._on_idle_leaf is not None:
                self._on_idle_leaf(node)
        elif node.parent is None and not node.children and node.lock_count == 0:
            self._roots.pop(node.namespace, None)  # a namespace that holds nothing costs nothing

    def _pages_between(self, above: Node | None, node: Node) -> list[int]:
        runs: list[PageArray] = []
        current: Node | None = node
        while current is not None and current is not above:
            runs.append(current.pages)
            current = current.parent
        return [page for run in reversed(runs) for page in run.tolist()]

    def _branch(self, key: TokenArray) -> bytes:
        return key[: self.page_size].tobytes()


def _common_len(one: TokenArray, other: TokenArray) -> int:
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length
