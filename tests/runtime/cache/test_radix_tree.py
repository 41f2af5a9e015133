"""The tree alone: match, insert, split, locks, trimming."""

from __future__ import annotations

import numpy as np
import pytest

from ramet.runtime.cache.radix_tree import RadixTree, TokenArray


def tokens(*ids: int) -> TokenArray:
    return np.array(ids, dtype=np.int32)


def put(tree: RadixTree, ids: TokenArray, pages: list[int], namespace: str = "") -> list[int]:
    """Insert from the root as a request does; the pages that were not taken."""
    root, matched = tree.match(namespace, ids)
    done = matched // tree.page_size
    tree.insert(root, ids[matched:], pages[done:])
    return pages[:done]


def test_match_splits_an_edge_where_it_ends() -> None:
    tree = RadixTree(1)
    put(tree, tokens(1, 2, 3, 4), [10, 11, 12, 13])
    node, length = tree.match("", tokens(1, 2, 9))
    assert length == 2 and tree.pages_to(node) == [10, 11]
    assert [len(n.key) for n in tree.nodes()] == [2, 2]


def test_the_lower_part_of_a_split_stays_the_same_node() -> None:
    tree = RadixTree(1)
    put(tree, tokens(1, 2, 3, 4), [10, 11, 12, 13])
    end, _ = tree.match("", tokens(1, 2, 3, 4))
    tree.lock(end)
    head, _ = tree.match("", tokens(1, 2))
    assert tree.pages_to(end) == [10, 11, 12, 13] and head.lock_count == 1 and end.parent is head
    tree.unlock(end)
    assert tree.num_evictable == 4


def test_peek_leaves_no_trace() -> None:
    tree = RadixTree(1)
    put(tree, tokens(1, 2, 3, 4), [10, 11, 12, 13])
    version = tree.version
    assert tree.peek("", tokens(1, 2, 9))[1] == 2 and tree.peek("other", tokens(1))[1] == 0
    assert len(list(tree.nodes())) == 1 and tree.version == version and tree.num_namespaces == 1


def test_insert_hands_back_what_the_tree_has() -> None:
    tree = RadixTree(1)
    put(tree, tokens(1, 2, 3), [10, 11, 12])
    root, _ = tree.match("", tokens())
    found = tree.insert(root, tokens(1, 2, 7, 8), [20, 21, 22, 23])
    assert found.shared_pages == [10, 11] and tree.pages_to(found.node) == [10, 11, 22, 23]
    assert tree.num_tokens == 5


@pytest.mark.parametrize(
    ("query", "length"), [((1, 2, 3, 4, 5, 6, 7, 8), 8), ((1, 2, 3, 4, 5, 6, 7, 9), 4), ((1, 2, 3, 9), 0), ((1, 2, 3), 0)]
)
def test_pages_are_matched_whole(query: tuple[int, ...], length: int) -> None:
    tree = RadixTree(4)
    put(tree, tokens(1, 2, 3, 4, 5, 6, 7, 8), [10, 11])
    node, matched = tree.match("", tokens(*query))
    assert matched == length and tree.pages_to(node) == [10, 11][: length // 4]


def test_sequences_that_differ_inside_a_page_are_siblings() -> None:
    tree = RadixTree(4)
    put(tree, tokens(1, 2, 3, 4), [10])
    assert put(tree, tokens(1, 2, 3, 5), [11]) == []
    assert tree.match("", tokens(1, 2, 3, 5))[1] == 4 and tree.num_tokens == 8


def test_trim_cuts_pages_from_the_end_and_then_the_leaf() -> None:
    tree = RadixTree(2)
    put(tree, tokens(1, 2, 3, 4, 5, 6), [10, 11, 12])
    (leaf,) = tree.nodes()
    assert tree.trim(leaf, 1) == [12] and tree.match("", tokens(1, 2, 3, 4, 5, 6))[1] == 4
    (leaf,) = tree.nodes()
    assert tree.trim(leaf, 5) == [10, 11] and list(tree.nodes()) == [] and tree.num_tokens == 0


def test_an_empty_namespace_is_forgotten() -> None:
    tree = RadixTree(1)
    put(tree, tokens(1, 2), [10, 11], "tenant")
    assert tree.num_namespaces == 1
    (leaf,) = tree.nodes()
    tree.trim(leaf, 2)
    assert tree.num_namespaces == 0


def test_a_locked_node_is_not_trimmed() -> None:
    tree = RadixTree(1)
    put(tree, tokens(1, 2), [10, 11])
    node, _ = tree.match("", tokens(1, 2))
    tree.lock(node)
    with pytest.raises(AssertionError, match="unlocked leaf"):
        tree.trim(node, 1)
