"""Integers of quantised checkpoints in the CPU step: the blocks hold the same numbers, and what they cannot hold is computed in float."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ramet.errors import Unsupported
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.cpu_executor import CpuExecutor
from ramet.runtime.executor.default_executor import create_executor
from ramet.runtime.executor.exact_blocks import exact_blocks
from ramet.runtime.executor.quantized_weights import load_quantized
from ramet.runtime.executor.torch_executor import TorchExecutor
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.cpu_kv_pool import KV_TYPES
from ramet.runtime.kernels.packed_weight import CpuContext
from ramet.runtime.layers.quantized_weight import GroupedMatrix
from ramet.runtime.models.hf_config import model_spec
from tests.runtime.executor.packed_models import AWQ_CONFIG, CASES, awq, files_of, gptq, gptq_config, write

if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
    pytest.skip("the processor lacks AVX2, FMA or F16C", allow_module_level=True)


def matrix(bits: int, zeros: Any = None, *, group: int = 64, rows: int = 24, columns: int = 128) -> GroupedMatrix:
    torch.manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    shape = rows, columns // group
    zero = torch.full(shape, zeros) if isinstance(zeros, int) else torch.randint(1, 1 << bits, shape)
    return GroupedMatrix(codes, (torch.rand(shape) * 0.02).half(), zero.to(torch.int16))


@pytest.mark.parametrize(("made", "bits"), [(matrix(4, 8), 4), (matrix(4), 8), (matrix(8, 128), 8), (matrix(4, 8, group=32), 4)])
def test_blocks_hold_the_same_numbers(made: GroupedMatrix, bits: int) -> None:
    blocks = exact_blocks(made)
    assert blocks is not None and blocks.bits == bits
    assert torch.equal(torch.from_numpy(blocks.dequantize()), made.dequantise())
    wide = exact_blocks(made, bits=8)
    assert wide is not None and torch.equal(torch.from_numpy(wide.dequantize()), made.dequantise())


def test_what_blocks_cannot_hold() -> None:
    assert exact_blocks(matrix(8)) is None  # codes less their zeros are more than 8 bits
    assert exact_blocks(matrix(4), bits=4) is None
    four = matrix(4, 8)
    assert exact_blocks(GroupedMatrix(four.codes, four.scales.float() * 1.0001, four.zeros)) is None
    assert exact_blocks(GroupedMatrix(four.codes, four.scales, four.zeros, torch.arange(127, -1, -1))) is None
    assert exact_blocks(matrix(4, 8, group=16)) is None


@pytest.mark.parametrize("num_tokens", [1, 3, 8, 40])
def test_the_kernels_take_codes_of_minus_128(num_tokens: int) -> None:
    made = matrix(8, 128)
    made.codes[::3] = 0
    blocks = exact_blocks(made)
    assert blocks is not None and blocks.q.min() == -128
    context = CpuContext(1)
    x = torch.randint(-127, 128, (num_tokens, 128)).float()
    x.view(num_tokens, 4, 32)[:, :, 0] = 127  # so that activations are rounded to themselves
    found = torch.from_numpy(context.linear(context.pack(blocks), x.numpy()))
    torch.testing.assert_close(found, F.linear(x, made.dequantise()), rtol=1e-4, atol=1e-2)
    context.close()


EXACT = {"awq": (awq(symmetric=True), AWQ_CONFIG), "awq, zeros": CASES["awq"], "gptq 8": (gptq(8, symmetric=True), gptq_config(8))}


@pytest.mark.parametrize("case", EXACT)
def test_the_step_runs_the_checkpoint(case: str, tmp_path: Path) -> None:
    """By name or left alone; its logits are those of the numbers, but for what the kernels round."""
    write(tmp_path, *EXACT[case])
    files = files_of(tmp_path)
    loaded = load_quantized(files, model_spec(files), bits=None, threads=1, kv_type=KV_TYPES["float32"])
    assert loaded.num_parameters > 4 * loaded.num_bytes / 10
    for wanted in (None, EXACT[case][1]["quant_method"]):
        executor = create_executor(options(tmp_path, quantization=wanted))
        assert isinstance(executor, CpuExecutor)
        executor.close()


@pytest.mark.parametrize("case", ["gptq 4, sorted inputs", "gptq 8", "fp8"])
def test_otherwise_torch_computes_and_says_why(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, *CASES[case])
    with caplog.at_level(logging.INFO, "ramet"):
        executor = create_executor(options(tmp_path))
    assert isinstance(executor, TorchExecutor) and "dequantised" in caplog.text
    executor.close()
    if case != "fp8":
        assert "blocks of 32 do not hold" in caplog.text


def test_ramet_says_what_cannot_be_had(tmp_path: Path) -> None:
    write(tmp_path, *CASES["awq"])
    with pytest.raises(Unsupported, match="kv-cache-dtype"):
        create_executor(options(tmp_path, kv_cache_dtype="fp8_e4m3"))


def options(folder: Path, **more: Any) -> EngineConfig:
    return EngineConfig.from_options({"model_path": str(folder), "device": "cpu", "max_total_tokens": 512, **more})
