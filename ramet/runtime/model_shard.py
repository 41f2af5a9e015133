"""What one tensor-parallel rank holds of a model, from plain numbers. No torch.

    query, key and value heads     whole groups: a key/value head with the queries that read it. Where there are fewer key/value heads than
                                   ranks, several ranks hold the same one and share out its queries
    MLP                            equal parts of the inner size, of each expert's too; the router is everywhere
    embedding and logits           equal parts of the vocabulary

Groups need not come out even: 3 key/value heads on 2 ranks are 2 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ramet.errors import ConfigError
from ramet.runtime.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelShard:
    """`spec` is the whole model; the ranges say which of its query heads, key/value heads, inner features (of an MLP, of every expert, of
    the shared expert) and tokens are here."""

    spec: ModelSpec
    heads: range
    kv_heads: range
    inner: range
    vocab: range
    expert_inner: range = range(0)
    shared_inner: range = range(0)

    @property
    def local(self) -> ModelSpec:
        """The model as this rank's layers see it; the vocabulary stays whole."""
        experts = self.spec.experts
        if experts is not None:
            experts = replace(experts, intermediate_size=len(self.expert_inner), shared_size=len(self.shared_inner))
        heads, kv_heads = len(self.heads), len(self.kv_heads)
        return replace(self.spec, num_heads=heads, num_kv_heads=kv_heads, intermediate_size=len(self.inner), experts=experts)

    @property
    def shared_expert(self) -> ModelShard:
        """The same with the MLP that all tokens go through beside the experts for the layers' only one."""
        size = 0 if self.spec.experts is None else self.spec.experts.shared_size
        return replace(self, spec=replace(self.spec, intermediate_size=size), inner=self.shared_inner)


def divide(spec: ModelSpec, rank: int, size: int) -> ModelShard:
    """The part of rank `rank` of `size`. Raises `ConfigError` that names what cannot be divided."""
    _check(spec, size)
    kv_heads, heads = _heads(spec, rank, size)
    experts = (0, 0) if spec.experts is None else (spec.experts.intermediate_size, spec.experts.shared_size)
    divided = (_share(range(length), rank, size) for length in (spec.intermediate_size, spec.vocab_size, *experts))
    return ModelShard(spec, heads, kv_heads, *divided)


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
    if (experts := spec.experts) is not None:
        reasons |= {
            f"experts of intermediate size {experts.intermediate_size}": experts.intermediate_size % size != 0,
            f"a shared expert of intermediate size {experts.shared_size}": experts.shared_size % size != 0,
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
