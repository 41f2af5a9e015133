"""TorchAttention against a per-token loop in float64, on pools full of NaN."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.row_groups import MAX_SHORT_QUERY, group_short_rows
from ramet.runtime.attention.torch_backend import TorchAttention


@dataclass(frozen=True)
class Shape:
    rows: tuple[tuple[int, int], ...]  # (tokens already in the pool, new tokens)
    page_size: int = 1
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 8
    window: int | None = None
    softcap: float | None = None
    contiguous: bool = False
    dtype: torch.dtype = torch.float32
    pool_dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass(frozen=True)
class Case:
    batch: ForwardBatch
    pool: KVPool
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    places: list[list[int]]  # per row, per position


def build(shape: Shape) -> Case:
    """A batch whose earlier keys are in the pool, whose unused places are NaN, and whose unused table columns point at them."""
    rng = torch.Generator().manual_seed(shape.seed)
    ends = [before + new for before, new in shape.rows]
    pages_of = [-(-end // shape.page_size) for end in ends]
    num_pages = sum(pages_of) + 3
    order = torch.arange(num_pages) if shape.contiguous else torch.randperm(num_pages, generator=rng)
    owned = [part.tolist() for part in order[: sum(pages_of)].split(pages_of)]
    poison = int(order[-1])
    table = torch.full((len(ends), max(pages_of) + 2), poison, dtype=torch.int32)
    for row, pages in enumerate(owned):
        table[row, : len(pages)] = torch.tensor(pages)
    places = [
        [pages[i // shape.page_size] * shape.page_size + i % shape.page_size for i in range(end)]
        for pages, end in zip(owned, ends, strict=True)
    ]
    size = (num_pages * shape.page_size, shape.kv_heads, shape.head_dim)
    pool = KVPool(*((torch.full(size, float("nan"), dtype=shape.pool_dtype),) for _ in range(2)), shape.page_size)
    for row, (before, _) in enumerate(shape.rows):
        for cache in (pool.keys[0], pool.values[0]):
            _bytes(cache)[places[row][:before]] = _bytes(torch.randn(before, *size[1:], generator=rng).to(shape.pool_dtype))
    new = [n for _, n in shape.rows]
    total = sum(new)
    starts = [0, *itertools.accumulate(new)]
    batch = ForwardBatch(
        token_ids=torch.zeros(total, dtype=torch.int64),
        positions=torch.cat([torch.arange(before, before + n) for before, n in shape.rows]),
        kv_slots=torch.tensor([p for row, (before, _) in enumerate(shape.rows) for p in places[row][before:]]),
        query_starts=torch.tensor(starts, dtype=torch.int32),
        kv_lens=torch.tensor(ends, dtype=torch.int32),
        page_table=table,
        logit_indices=torch.tensor(starts[1:]) - 1,
        query_lens=tuple(new),
        kv_lens_host=tuple(ends),
    )
    # As models hand them over: views into one fused projection.
    fused = torch.randn(total, shape.heads + 2 * shape.kv_heads, shape.head_dim, generator=rng).to(shape.dtype)
    query, key, value = fused.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    return Case(batch, pool, query, key, value, places)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Torch moves bytes where it does not move fp8."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def attend_slowly(shape: Shape, case: Case, scale: float) -> torch.Tensor:
    """The definition, token by token and head by head, in float64. Reads the pool after TorchAttention stored into it."""
    out = torch.zeros(case.query.shape, dtype=torch.float64)
    token = 0
    for row, (before, new) in enumerate(shape.rows):
        for position in range(before, before + new):
            low = 0 if shape.window is None else max(0, position - shape.window + 1)
            seen = case.places[row][low : position + 1]
            for head in range(shape.heads):
                kv_head = head // (shape.heads // shape.kv_heads)
                keys, values = case.pool.keys[0][seen, kv_head].double(), case.pool.values[0][seen, kv_head].double()
                scores = keys @ case.query[token, head].double() * scale
                if shape.softcap is not None:
                    scores = shape.softcap * torch.tanh(scores / shape.softcap)
                out[token, head] = torch.softmax(scores, 0) @ values
            token += 1
    return out


def check(shape: Shape) -> None:
    case = build(shape)
    scale = 1.3 / math.sqrt(shape.head_dim)
    attention = TorchAttention()
    attention.prepare(case.batch, case.pool)
    out = attention.forward(case.query, case.key, case.value, 0, scale, shape.window, shape.softcap)
    stored = case.pool.keys[0][case.batch.kv_slots], case.pool.values[0][case.batch.kv_slots]
    for found, given_ in zip(stored, (case.key, case.value), strict=True):
        assert torch.equal(_bytes(found), _bytes(given_.to(shape.pool_dtype)))
    assert out.dtype == shape.dtype
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[shape.dtype]
    torch.testing.assert_close(out.double(), attend_slowly(shape, case, scale), atol=tolerance, rtol=tolerance)


rows = st.lists(
    st.one_of(st.tuples(st.integers(0, 40), st.just(1)), st.tuples(st.integers(0, 30), st.integers(1, MAX_SHORT_QUERY + 14))),
    min_size=1,
    max_size=5,
)


@given(
    rows=rows,
    page_size=st.sampled_from([1, 2, 3, 16]),
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    window=st.sampled_from([None, None, 1, 3, 17]),
    softcap=st.sampled_from([None, None, 1.5]),
    contiguous=st.booleans(),
    dtypes=st.sampled_from(
        [
            (torch.float32, torch.float32),
            (torch.float32, torch.bfloat16),
            (torch.float16,) * 2,
            (torch.bfloat16,) * 2,
            (torch.float32, torch.float8_e4m3fn),
            (torch.bfloat16, torch.float8_e5m2),
        ]
    ),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_equals_the_definition(
    rows: list[tuple[int, int]],
    page_size: int,
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    contiguous: bool,
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
) -> None:
    check(Shape(tuple(rows), page_size, *heads, 8, window, softcap, contiguous, *dtypes, seed=seed))


@pytest.mark.parametrize(
    ("contiguous", "window", "softcap"), [(True, None, None), (False, 100, None), (True, 700, 2.0), (False, None, 2.0), (True, 100, None)]
)
def test_several_tiles_of_queries_and_rows_read_in_place(contiguous: bool, window: int | None, softcap: float | None) -> None:
    """Longer than the tiles of prompt chunks (512, 128) and than the length from which a contiguous decode row is read in place."""
    check(Shape(((30, 530), (800, 1), (0, 140)), 16, 2, 1, 4, window, softcap, contiguous))


def test_one_prepare_serves_layers_of_different_windows() -> None:
    shape = Shape(((30, 1), (9, 4), (2, 20)), page_size=2)
    case = build(shape)
    attention = TorchAttention()
    attention.prepare(case.batch, case.pool)
    for window in (None, 4, None, 8):
        windowed = Shape(shape.rows, shape.page_size, window=window)
        out = attention.forward(case.query, case.key, case.value, 0, 0.5, window)
        torch.testing.assert_close(out.double(), attend_slowly(windowed, case, 0.5), atol=2e-5, rtol=2e-5)


@given(
    query_lens=st.lists(st.integers(0, MAX_SHORT_QUERY + 3), min_size=1, max_size=40),
    data=st.data(),
    max_tokens=st.integers(1, 5000),
)
@settings(deadline=None, max_examples=60)
def test_groups_are_a_partition_within_the_limits(query_lens: list[int], data: st.DataObject, max_tokens: int) -> None:
    kv_lens = [n + data.draw(st.integers(0, 900)) for n in query_lens]
    groups = group_short_rows(query_lens, kv_lens, max_tokens=max_tokens)
    assert sorted(row for group in groups for row in group.rows) == [r for r, n in enumerate(query_lens) if 0 < n <= MAX_SHORT_QUERY]
    for group in groups:
        assert {query_lens[row] for row in group.rows} == {group.query_len}
        assert group.kv_len == max(kv_lens[row] for row in group.rows)
        assert len(group.rows) == 1 or len(group.rows) * group.kv_len <= max_tokens
        padding = sum(group.kv_len - kv_lens[row] for row in group.rows)
        assert padding <= 256 + 0.25 * sum(kv_lens[row] for row in group.rows)


@pytest.mark.parametrize("contiguous", [True, False])
def test_what_fp8_cannot_hold_becomes_the_largest_that_it_can(contiguous: bool) -> None:
    shape = Shape(((2, 3),), contiguous=contiguous, pool_dtype=torch.float8_e4m3fn)
    case = build(shape)
    attention = TorchAttention()
    attention.prepare(case.batch, case.pool)
    attention.forward(case.query, case.key * 1e5, case.value * 1e5, 0, 1.0)
    assert case.pool.values[0][case.batch.kv_slots].float().abs().max() == 448.0
