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
from ramet.runtime.kernels.packed_weight import BLOCK, Blocks, CpuContext, PackedWeight, StoredRows, from_gguf, quantize

if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    pytest.skip("the processor lacks AVX2, FMA or F16C", allow_module_level=True)


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
def test_the_batched_product_gives_the_same_bits(context: CpuContext, rows: int) -> None:
    random = np.random.default_rng(rows)
    weight = context.pack(quantize(random.standard_normal((40, 160)).astype(np.float32), 4), random.standard_normal(40).astype(np.float32))
    x = torch.from_numpy(random.standard_normal((rows, 160)).astype(np.float32))
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
