"""What one tensor-parallel rank holds of a model, from plain numbers. No torch.

    query, key and value heads     whole groups: a key/value head with the queries that read it. Where there are fewer key/value heads than
                                   ranks, several ranks hold the same one and share out its queries
    MLP                            equal parts of the inner size
    embedding and logits           equal parts of the vocabulary

Groups need not come out even: 3 key/value heads on 2 ranks are 2 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ramet.errors import ConfigError
from ramet.runtime.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelShard:
    """`spec` is the whole model; the ranges say which of its query heads, key/value heads, inner MLP features and tokens are here."""

    spec: ModelSpec
    heads: range
    kv_heads: range
    inner: range
    vocab: range

    @property
    def local(self) -> ModelSpec:
        """The model as this rank's layers see it; the vocabulary stays whole."""
        return replace(self.spec, num_heads=len(self.heads), num_kv_heads=len(self.kv_heads), intermediate_size=len(self.inner))


def divide(spec: ModelSpec, rank: int, size: int) -> ModelShard:
    """The part of rank `rank` of `size`. Raises `ConfigError` that names what cannot be divided."""
    _check(spec, size)
    kv_heads, heads = _heads(spec, rank, size)
    return ModelShard(spec, heads, kv_heads, _share(range(spec.intermediate_size), rank, size), _share(range(spec.vocab_size), rank, size))


def _heads(spec: ModelSpec, rank: int, size: int) -> tuple[range, range]:
    """Key/value heads of a rank, and its query heads."""
    group = spec.num_heads // spec.num_kv_heads
    if size <= spec.num_kv_heads:
        kv_heads = _share(range(spec.num_kv_heads), rank, size)
        return kv_heads, times(kv_heads, group)
    kv_head = rank * spec.num_kv_heads // size
    sharers = [other for other in range(size) if other * spec.num_kv_heads // size == kv_head]
    queries = range(kv_head * group, (kv_head + 1) * group)
    return range(kv_head, kv_head + 1), _share(queries, sharers.index(rank), len(sharers))


def _check(spec: ModelSpec, size: int) -> None:
    group, sharers = spec.num_heads // spec.num_kv_heads, -(-size // spec.num_kv_heads)
    reasons = {
        f"{spec.num_heads} query heads over {spec.num_kv_heads} key/value heads": sharers > group,
        f"an intermediate size of {spec.intermediate_size}": spec.intermediate_size % size != 0,
        f"a vocabulary of {spec.vocab_size} tokens": spec.vocab_size % size != 0,
    }
    for what, is_so in reasons.items():
        if is_so:
            raise ConfigError(f"tp_size={size} cannot divide {what} ({spec.architecture}); choose another number of ranks", param="tp_size")


def times(span: range, unit: int) -> range:
    """A span of things as the span of the `unit` numbers that each is made of."""
    return range(span.start * unit, span.stop * unit)


def shifted(span: range, by: int) -> range:
    return range(span.start + by, span.stop + by)


def _share(span: range, rank: int, size: int) -> range:
    """Parts that differ by one at most, in order."""
    return range(span.start + rank * len(span) // size, span.start + (rank + 1) * len(span) // size)
