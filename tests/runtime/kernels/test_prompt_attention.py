"""Attention of prompts in 16-bit integers (`kernels/cpu/integer_attention.h`) against float64, beside its twin in float32, and against
itself where the same query comes in other company."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.cpu_kv_pool import KV_TYPES
from ramet.runtime.kernels.packed_weight import CpuContext

if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    pytest.skip("the processor lacks AVX2, FMA or F16C", allow_module_level=True)

SLOTS = 1024
LARGEST_ERROR = 1e-3  # of an output's elements, in units of the largest value that the query sees


@dataclass(frozen=True)
class Row:
    """`cached` keys that the pool has already, `new` queries behind them; `pages` of the pool in order."""

    cached: int
    new: int
    pages: Sequence[int]

    @property
    def keys(self) -> int:
        return self.cached + self.new


@dataclass(frozen=True)
class Layer:
    """One layer's pool [slots, KV heads, head size], and who reads it."""

    keys: torch.Tensor
    values: torch.Tensor
    group: int
    page_size: int = 1
    window: int = 0  # keys that a query sees, itself included; 0: all

    def attend(self, rows: Sequence[Row], query: torch.Tensor, *, in_float32: bool = False) -> torch.Tensor:
        """`query` [tokens, heads, head size], row behind row; the result likewise."""
        positions = torch.cat([torch.arange(row.cached, row.keys) for row in rows])
        starts = torch.tensor([0, *accumulate(row.new for row in rows)], dtype=torch.int32)
        table = torch.zeros(len(rows), max(len(row.pages) for row in rows), dtype=torch.int32)
        for i, row in enumerate(rows):
            table[i, : len(row.pages)] = torch.tensor(row.pages)
        lens = torch.tensor([row.keys for row in rows], dtype=torch.int32)
        batch = cpu_library.Batch(num_tokens=len(query), num_rows=len(rows), max_pages=table.shape[1], page_size=self.page_size)
        batch.positions, batch.query_starts = positions.data_ptr(), starts.data_ptr()
        batch.kv_lens, batch.page_table = lens.data_ptr(), table.data_ptr()
        out, context = torch.full_like(query, float("nan")), CpuContext(2)
        pools = (self.keys.data_ptr(), self.values.data_ptr())
        context.library.ramet_attention(
            context.handle, byref(self.model()), byref(batch), query.data_ptr(), *pools, self.window, int(in_float32), out.data_ptr()
        )
        return out

    def model(self) -> cpu_library.Model:
        _, kv_heads, size = self.keys.shape
        return cpu_library.Model(
            heads=kv_heads * self.group,
            kv_heads=kv_heads,
            head_dim=size,
            kv_type=KV_TYPES[str(self.keys.dtype).removeprefix("torch.")].number,
            attention_scale=size**-0.5,
        )

    def expected(self, row: Row, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one row in float64; and [tokens, heads, 1], the largest value that each query sees."""
        page, offset = torch.arange(row.keys) // self.page_size, torch.arange(row.keys) % self.page_size
        slots = torch.tensor(row.pages)[page] * self.page_size + offset
        keys, values = (pool[slots].double().repeat_interleave(self.group, 1) for pool in (self.keys, self.values))
        scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * query.shape[-1] ** -0.5
        behind = torch.arange(row.cached, row.keys)[:, None] - torch.arange(row.keys)
        unseen = (behind < 0) | ((behind >= self.window) if self.window else False)
        weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        largest = values.abs().amax(-1).T[:, None].expand_as(scores).masked_fill(unseen, 0).amax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values), largest.T[..., None]


def random_layer(
    seed: int, *, kv_heads: int = 2, group: int = 3, size: int = 32, dtype: torch.dtype = torch.float16, page_size: int = 1, window: int = 0
) -> Layer:
    """Keys with some large dimensions and values of very different size, as models have them."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(SLOTS, kv_heads, size, generator=generator) for _ in range(2))
    keys[..., : size // 8] *= 4
    values *= torch.randn(SLOTS, kv_heads, 1, generator=generator).exp()
    return Layer(keys.to(dtype), values.to(dtype), group, page_size, window)


def random_query(layer: Layer, tokens: int, seed: int) -> torch.Tensor:
    _, kv_heads, size = layer.keys.shape
    return torch.randn(tokens, kv_heads * layer.group, size, generator=torch.Generator().manual_seed(seed)) * 2


def shuffled(num_pages: int, seed: int) -> list[int]:
    pages: list[int] = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).tolist()
    return pages


@settings(max_examples=20, deadline=None)
@given(
    lens=st.lists(st.tuples(st.integers(0, 200), st.integers(33, 200)), min_size=1, max_size=2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    size=st.sampled_from([16, 32, 64, 80, 128]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    page_size=st.sampled_from([1, 16]),
    window=st.sampled_from([0, 0, 1, 40, 64, 130]),
    seed=st.integers(0, 1000),
)
def test_equals_float64(
    lens: list[tuple[int, int]], kv_heads: int, group: int, size: int, dtype: torch.dtype, page_size: int, window: int, seed: int
) -> None:
    layer = random_layer(seed, kv_heads=kv_heads, group=group, size=size, dtype=dtype, page_size=page_size, window=window)
    pages = shuffled(SLOTS // page_size, seed)
    rows = [Row(cached, new, pages[i * len(pages) // 2 :]) for i, (cached, new) in enumerate(lens)]
    query = random_query(layer, sum(row.new for row in rows), seed)
    found, exact = layer.attend(rows, query), layer.attend(rows, query, in_float32=True)
    begin = 0
    for row in rows:
        part = slice(begin, begin + row.new)
        expected, largest = layer.expected(row, query[part])
        assert ((found[part] - expected).abs() / largest).max() < LARGEST_ERROR
        assert ((exact[part] - expected).abs() / largest).max() < 1e-5
        begin += row.new


def test_the_typical_error_is_that_of_rounding_to_16_bits() -> None:
    layer, row = random_layer(1, size=64), Row(500, 300, shuffled(SLOTS, 1))
    query = random_query(layer, row.new, 1)
    expected, _ = layer.expected(row, query)
    assert (layer.attend([row], query) - expected).norm() < 3e-4 * expected.norm()


def test_the_largest_integers_fit() -> None:
    """Queries and keys in one direction, weights all one, values all the same: every sum is as large as it can be."""
    layer = random_layer(2, size=64)
    layer.keys[:], layer.values[:] = 0, -3
    layer.keys[..., 5] = 60
    query = torch.zeros(100, 6, 64)
    query[..., 5] = 1000
    found = layer.attend([Row(28, 100, range(SLOTS))], query)
    assert torch.allclose(found, torch.tensor(-3.0), rtol=1e-5)


def test_nothing_but_zeros() -> None:
    layer = random_layer(3)
    layer.keys[:], layer.values[:] = 0, 0
    assert torch.equal(layer.attend([Row(0, 40, range(40))], torch.zeros(40, 6, 32)), torch.zeros(40, 6, 32))


def test_a_key_that_all_look_at_beside_many_that_matter_more() -> None:
    """A first token with nine tenths of the weight and next to no value, as models train them."""
    layer, row = random_layer(4, group=1, size=64), Row(300, 200, shuffled(SLOTS, 4))
    layer.values[:] = torch.randn(layer.values.shape, generator=torch.Generator().manual_seed(5)).half() + 1
    layer.values[row.pages[0]] = 0.01
    query = random_query(layer, row.new, 4) * 0.1
    query[..., 7] = 12
    layer.keys[..., 7] = 0
    layer.keys[row.pages[0], :, 7] = 6  # a score of 9, e⁹ among hundreds of e⁰
    expected, _ = layer.expected(row, query)
    found = layer.attend([row], query)
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 1e-3


@pytest.mark.parametrize("group", [1, 3, 5])
@pytest.mark.parametrize("cut", [33, 64, 100, 163])
@pytest.mark.parametrize("window", [0, 50, 128])
def test_a_query_is_the_same_however_its_prompt_was_cut(group: int, cut: int, window: int) -> None:
    layer, pages = random_layer(6, group=group, window=window), shuffled(SLOTS, 6)
    query = random_query(layer, 200, 6)
    whole = layer.attend([Row(0, 200, pages)], query)
    assert torch.equal(layer.attend([Row(0, cut, pages)], query[:cut]), whole[:cut])
    assert torch.equal(layer.attend([Row(cut, 200 - cut, pages)], query[cut:]), whole[cut:])


@pytest.mark.parametrize("page_size", [1, 16, 128])
@pytest.mark.parametrize("shared", [0, 64, 100, 256])
@pytest.mark.parametrize("window", [0, 90])
def test_rows_that_share_pages_get_what_each_gets_alone(shared: int, page_size: int, window: int) -> None:
    layer, order = random_layer(7, page_size=page_size, window=window), shuffled(SLOTS // page_size, 7)
    common = order[: shared // page_size]
    lengths = (shared + 40, shared + 90, 70, shared + 65)
    rows = []
    for i, length in enumerate(lengths):
        own = [order[(len(common) + 3 * i + j) % len(order)] for j in range(length // page_size + 1)]
        rows.append(Row(length - 37, 37, [*(common if i != 2 else []), *own]))
    query = random_query(layer, 37 * len(rows), 7)
    together = layer.attend(rows, query)
    for i, row in enumerate(rows):
        assert torch.equal(together[37 * i : 37 * (i + 1)], layer.attend([row], query[37 * i : 37 * (i + 1)]))


def test_what_comes_later_changes_nothing() -> None:
    layer, row = random_layer(8), Row(20, 100, range(SLOTS))
    query = random_query(layer, row.new, 8)
    before = layer.attend([row], query)
    layer.keys[80:], layer.values[80:], query[60:] = 7, 900, 5
    after = layer.attend([row], query)
    assert torch.equal(after[:60], before[:60])
    assert not torch.equal(after[60:], before[60:])
