"""unevaluatedProperties and unevaluatedItems: branches know what their keywords have seen; here what they have not seen gets its schema."""

from __future__ import annotations

from dataclasses import replace

from ramet.grammar.schema_branches import ANYTHING, Arrays, Branch, Goal, Objects, Scope, Values, conjoin
from ramet.grammar.schema_document import Document, refuse

Branches = tuple[Branch, ...]


def close_objects(found: Branches, document: Document, pointer: str) -> Branches:
    _refuse_values(found, "{", pointer + "/unevaluatedProperties")
    child = frozenset({document.child(pointer, "unevaluatedProperties")})
    closed = (conjoin(branch, _unseen_properties(branch, child)) if isinstance(branch, Objects) else branch for branch in found)
    return tuple(branch for branch in closed if branch is not None)


def close_arrays(found: Branches, document: Document, pointer: str) -> Branches:
    _refuse_values(found, "[", pointer + "/unevaluatedItems")
    child = document.child(pointer, "unevaluatedItems")
    closed = (conjoin(branch, _unseen_items(branch, child, document)) if isinstance(branch, Arrays) else branch for branch in found)
    return tuple(branch for branch in closed if branch is not None)


def unseen(branch: Branch) -> Branch:
    """As it is under a `not`: what was looked at there counts as not seen."""
    if isinstance(branch, Objects):
        return replace(branch, scopes=tuple(replace(scope, is_seen=False) for scope in branch.scopes))
    return replace(branch, num_seen=0, seen=frozenset()) if isinstance(branch, Arrays) else branch


def _unseen_properties(branch: Objects, child: Goal) -> Objects:
    seen = [scope for scope in branch.scopes if scope.is_seen]
    if any(scope.rest for scope in seen):
        return Objects()
    names = dict.fromkeys(name for scope in seen for name, _ in scope.named)
    patterns = dict.fromkeys(pattern for scope in seen for pattern, _ in scope.patterns)
    named, matching = (tuple((key, ANYTHING) for key in keys) for keys in (names, patterns))
    return Objects(scopes=(Scope(named, matching, child),), counted_at=branch.counted_at)


def _unseen_items(branch: Arrays, child: str, document: Document) -> Arrays:
    """An item that something else has seen need not satisfy it."""
    if branch.num_seen is None:
        return Arrays(num_seen=None)
    options = [document.schemas[pointer] for pointer in (child, *sorted(branch.seen))]
    rest = frozenset({document.add(child, options[0]) if len(options) == 1 else document.add(child + "'", {"anyOf": options})})
    return Arrays((ANYTHING,) * branch.num_seen, rest, num_seen=None)


def _refuse_values(found: Branches, opening: str, where: str) -> None:
    if any(text[0] == opening for branch in found if isinstance(branch, Values) for text in branch.texts):
        refuse("cannot be enforced beside an enum or const of such values", where)
