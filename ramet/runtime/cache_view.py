"""What can be seen of a prefix cache from outside: its tree, and why a prompt was not found in it. All in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MissReason(StrEnum):
    """Why the rest of a prompt had to be computed."""

    NONE = "hit"  # nothing that could be reused was computed
    NEW = "new"  # it continues something that was seen before: nobody could have had the rest
    DIFFERS = "differs"  # another prompt agrees up to here and goes on otherwise
    EVICTED = "evicted"  # it was cached once
    NAMESPACE = "namespace"  # another cache namespace has it
    EMPTY = "empty"  # nothing was seen in this namespace before


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One request's search for its prompt. `possible_tokens`: what a cache that forgets nothing would have found. `position`: the first
    token that no prompt before had in this place; `seen`: how the nearest one went on there instead. `prompt_ids` is empty in lists."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    possible_tokens: int
    loaded_tokens: int = 0  # of the cached ones, those that the second tier brought
    reason: MissReason
    position: int
    prompt_ids: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A place where many prompts part. `again` of them go on with the same text behind what differs: that text could be shared."""

    count: int
    again: int
    computed_tokens: int  # behind the place, by those `count`
    example: Lookup


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNode:
    """One edge of the tree. `parent` is an index into `CacheView.nodes`, -1 at the top; `subtree_tokens` counts all at and below it.
    `idle_seconds`: since it was last used."""

    parent: int
    namespace: str
    num_tokens: int
    subtree_tokens: int
    hits: int
    idle_seconds: float
    num_pins: int
    in_use: bool
    is_dead: bool
    head: tuple[int, ...]  # how it begins


@dataclass(frozen=True, slots=True, kw_only=True)
class TierView:
    """What evicted KV went to. Tokens, cumulative but for the first three; rates as measured, 0.0 until they were."""

    host_tokens: int
    host_total_tokens: int
    disk_tokens: int
    disk_bytes: int  # of all models that share the directory
    loaded: int
    loaded_from_disk: int
    saved: int
    not_saved: int
    not_written: int
    cheaper_computed: int
    host_evicted: int
    disk_evicted: int
    bad_files: int
    host_bytes_per_second: float
    disk_bytes_per_second: float
    prompt_tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheView:
    """`nodes` are the largest subtrees, parents first; `num_nodes` counts all. The counters are cumulative tokens: `computed` were
    prefilled, of which `least` had to be, by whoever remembers every prompt and output (Σ of the edges of their tree)."""

    total_tokens: int
    used_tokens: int
    pinned_tokens: int
    cached_tokens: int  # in the tree
    prompt: int
    hit: int
    computed: int
    least: int
    evicted: int
    evicted_pinned: int
    duplicate: int
    pins_revoked: int
    num_nodes: int
    tier: TierView | None = None
    nodes: tuple[CacheNode, ...] = ()
    divergences: tuple[Divergence, ...] = ()
