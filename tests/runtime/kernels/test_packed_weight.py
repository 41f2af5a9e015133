"""Packed weights against plain numpy: the same numbers, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ramet.errors import Unsupported
from ramet.runtime.gguf_file import BLOCK_TYPES, BlockType, GgufTensor
from ramet.runtime.gguf_quants import dequantise
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.packed_weight import BLOCK, STORED_BITS, Blocks, CpuContext, PackedWeight, StoredRows, from_gguf, quantize

if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    pytest.skip("the processor lacks AVX2, FMA or F16C", allow_module_level=True)


HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}  # fmt: skip
"""Where a block's float16 begin."""
SCALES = {"Q3_K": slice(96, 108), "Q4_K": slice(4, 16), "Q5_K": slice(4, 16), "Q6_K": slice(192, 208), "IQ4_XS": slice(2, 8)}
"""Where a block's scales of few bits lie."""


@pytest.fixture(params=[1, 2])
def context(request: pytest.FixtureRequest) -> Iterator[CpuContext]:
    context = CpuContext(request.param)
    yield context
    context.close()


def product(context: CpuContext, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(context.linear(weight, x.numpy()))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What the kernels make of activations: int8 per block of 32, scale max|x|/127. float64."""
    blocks = x.reshape(len(x), -1, BLOCK)
    top = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(top > 0, torch.full_like(top, 127.0) / top, torch.zeros_like(top))  # 127 / top would be 127 · (1 / top)
    return ((blocks * inverse).round().double() * (top / 127.0).double()).reshape(x.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 8, 32), (2, 24, 64), (3, 64, 576), (7, 96, 1536), (33, 40, 96)])
def test_linear_is_the_product_with_rounded_activations(context: CpuContext, bits: int, rows: int, n: int, k: int) -> None:
    torch.manual_seed(rows * n + k + bits)
    generator = np.random.default_rng(rows * n + k + bits)
    blocks = quantize(generator.standard_normal((n, k)).astype(np.float32) * generator.uniform(0.01, 3), bits)
    bias = torch.randn(n)
    x = torch.randn(rows, k) * 5
    expected = rounded(x) @ torch.from_numpy(blocks.dequantize()).double().T + bias
    found = product(context, context.pack(blocks, bias.numpy()), x)
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_values_do_not_overflow(context: CpuContext, bits: int) -> None:
    """All products at their largest: 16-bit sums of a block must not saturate."""
    weight = np.full((8, 64), 3.0, np.float32)
    weight[:, ::2] = -3.0 if bits == 8 else 3.0
    weight[:, 0] = 0.0
    blocks = quantize(weight, bits)
    x = torch.ones(4, 64) * 100
    expected = rounded(x) @ torch.from_numpy(blocks.dequantize()).double().T
    assert torch.allclose(product(context, context.pack(blocks), x).double(), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_its_neighbours(context: CpuContext, bits: int) -> None:
    weight = context.pack(quantize(np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32), bits))
    x = torch.randn(37, 96)
    together = product(context, weight, x)
    alone = torch.cat([product(context, weight, x[i : i + 1]) for i in range(len(x))])
    assert torch.equal(together, alone)


def test_zeros_stay_zeros(context: CpuContext) -> None:
    weight = context.pack(quantize(np.zeros((8, 32), np.float32), 4))
    assert torch.equal(product(context, weight, torch.zeros(3, 32)), torch.zeros(3, 8))


def gguf_rows(kind: str, rows: int, seed: int) -> tuple[BlockType, npt.NDArray[np.uint8]]:
    """A random matrix [rows, 96] as it lies in a file."""
    block = next(b for b in BLOCK_TYPES.values() if b.name == kind)
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (rows, 3 * block.num_bytes), dtype=np.uint8).reshape(-1, block.num_bytes)
    head = 4 if kind == "Q4_1" else 2
    raw[:, :head] = generator.standard_normal((len(raw), head // 2)).astype(np.float16).view(np.uint8)
    return block, raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_gguf_blocks_keep_their_values(kind: str) -> None:
    block, raw = gguf_rows(kind, 16, 1)
    tensor = GgufTensor("w", (16, 96), block, raw)
    np.testing.assert_allclose(from_gguf(kind, raw).dequantize(), dequantise(tensor), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kinds", [("Q4_0",), ("Q4_1", "Q4_0", "Q4_1"), ("Q8_0", "Q8_0")])
def test_stored_rows_are_packed_as_their_blocks_are(context: CpuContext, kinds: tuple[str, ...]) -> None:
    rows = [gguf_rows(kind, 8 * (i + 1), i)[1] for i, kind in enumerate(kinds)]
    slow = context.pack(Blocks.concatenate([from_gguf(kind, raw) for kind, raw in zip(kinds, rows, strict=True)]))
    fast = context.pack_stored([StoredRows(kind, raw) for kind, raw in zip(kinds, rows, strict=True)])
    assert (fast.n, fast.k, fast.bits) == (slow.n, slow.k, slow.bits)
    assert np.array_equal(fast.data, slow.data)


def stored(kind: str, rows: int, k: int, *, fill: int | None = None) -> tuple[StoredRows, npt.NDArray[np.float32]]:
    """A matrix [rows, k] of random bytes (or codes of all `fill`) as a file holds it, with float16 of about one, and its numbers."""
    block = next(b for b in BLOCK_TYPES.values() if b.name == kind)
    generator = np.random.default_rng(len(kind) + rows)
    raw = generator.integers(0, 256, (rows * k // block.num_values, block.num_bytes), dtype=np.uint8)
    if fill is not None:
        raw[:] = fill
        raw[:, SCALES.get(kind, slice(0))] = 127
    for start in HALVES[kind]:
        scales = generator.uniform(0.5, 2, (len(raw), 1)) if fill is None else np.ones((len(raw), 1))
        raw[:, start : start + 2] = scales.astype(np.float16).view(np.uint8)
    raw = raw.reshape(rows, -1)
    return StoredRows(kind, raw), dequantise(GgufTensor("w", (rows, k), block, raw))


@pytest.mark.parametrize("kind", STORED_BITS)
@pytest.mark.parametrize(("rows", "n"), [(1, 8), (3, 24), (33, 40)])
def test_every_stored_type_multiplies_as_its_numbers(context: CpuContext, kind: str, rows: int, n: int) -> None:
    """Scales of K-quants are rounded to fp16, each by 2⁻¹¹ of itself at most."""
    matrix, numbers = stored(kind, n, 512)
    x, bias = torch.randn(rows, 512) * 3, np.ones(n, np.float32)
    expected = rounded(x) @ torch.from_numpy(numbers).double().T + 1
    bound = (2.0**-11 if "_K" in kind or kind == "IQ4_XS" else 1e-6) * rounded(x).abs() @ torch.from_numpy(np.abs(numbers)).double().T
    found = product(context, context.pack_stored([matrix], bias), x).double()
    # Where a scale and a minimum cancel, each counts by itself: a Q5_K number is the difference of two of up to 63·31 and 63.
    slack = rounded(x).abs().sum(1, keepdim=True) * (2.0**-11 * 2 * 63 * 31 if kind in ("Q4_K", "Q5_K") else 1e-4)
    assert ((found - expected).abs() <= bound + slack + 1e-4 * expected.abs()).all()


@pytest.mark.parametrize("kind", STORED_BITS)
@pytest.mark.parametrize("fill", [0, 127, 128, 255])
def test_the_largest_integers_of_a_type_do_not_overflow(context: CpuContext, kind: str, fill: int) -> None:
    """All codes of a block the least or the largest, −128 of Q8_0 among them, and scales that are not zero."""
    matrix, numbers = stored(kind, 16, 256, fill=fill)
    assert numbers.any() or (kind, fill) == ("Q8_0", 0)
    x = torch.full((9, 256), 100.0)
    expected = rounded(x) @ torch.from_numpy(numbers).double().T
    for batched_from in (1, 1 << 30):
        context.library.ramet_set_batched_from(context.handle, batched_from)
        found = product(context, context.pack_stored([matrix]), x).double()
        assert torch.allclose(found, expected, rtol=2e-3, atol=float(100 * 256 * np.abs(numbers).max() * 2.0**-11))


@pytest.mark.parametrize(("bits", "worst"), [(4, 0.5 / 15), (8, 0.5 / 254)])
def test_rounding_is_to_the_nearest(bits: int, worst: float) -> None:
    weight = np.random.default_rng(2).uniform(-1, 1, (8, 320)).astype(np.float32)
    grouped = weight.reshape(8, -1, BLOCK)
    span = grouped.max(2) - grouped.min(2) if bits == 4 else 2 * np.abs(grouped).max(2)
    error = np.abs(quantize(weight, bits).dequantize() - weight).reshape(8, -1, BLOCK).max(2)
    assert (error <= span * worst * 1.05 + 1e-3 * span).all()


def test_sizes_that_do_not_fit_are_refused(context: CpuContext) -> None:
    with pytest.raises(Unsupported, match="multiples of 8"):
        context.pack(quantize(np.zeros((9, 32), np.float32), 8))


@pytest.mark.parametrize("rows", [1, 8, 13, 24, 137, 301])
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q8_0"])
def test_the_batched_product_gives_the_same_bits(context: CpuContext, rows: int, kind: str) -> None:
    random = np.random.default_rng(rows)
    weight = context.pack_stored([stored(kind, 40, 256)[0]], random.standard_normal(40).astype(np.float32))
    x = torch.from_numpy(random.standard_normal((rows, 256)).astype(np.float32))
    context.library.ramet_set_batched_from(context.handle, 1 << 30)
    row_by_row = product(context, weight, x)
    context.library.ramet_set_batched_from(context.handle, 1)
    assert torch.equal(product(context, weight, x), row_by_row)


def test_the_choice_of_kernels_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = cpu_library.build()
    cpu_library.load()
    monkeypatch.setattr(cpu_library, "build", lambda: tmp_path / built.name)
    CpuContext(2).close()
    (kept,) = tmp_path.iterdir()
    assert int(kept.read_text()) in (8, 16, 32, 64, 1 << 30)
    kept.write_text("damaged")
    CpuContext(2).close()
    assert int(kept.read_text()) >= 8, "measured again"
