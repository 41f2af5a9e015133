"""Deterministic inference on a CUDA device: a request's tokens and log-probabilities, to the last bit, whatever is computed beside it and
however its prompt was cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch
from ramet.runtime.executor.kv_pool import allocate_pool
from ramet.runtime.executor.torch_executor import TorchExecutor
from ramet.runtime.model_spec import LayerSpec, ModelSpec, RopeSpec
from ramet.runtime.models.transformer import Transformer
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, Capacity, ModelInfo, PlanRow, RowResult, RowStart
from ramet.runtime.request import LogprobParams, SamplingParams
from tests.gpu.test_cuda_graphs import SPEC

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda", 0)
QWEN_LIKE = replace(SPEC, qk_norm=True, qkv_bias=True, tied_embeddings=False)
GEMMA_LIKE = replace(
    SPEC, sandwich_norms=True, attention_softcap=20.0, logit_softcap=30.0, activation="gelu_tanh", num_heads=7, num_kv_heads=1,
    layers=(LayerSpec(RopeSpec(10000.0, 64), window=70), LayerSpec(RopeSpec(10000.0, 32)), LayerSpec(None)),
)  # fmt: skip
PROMPT = tuple((37 * i + 11) % 1000 for i in range(190))
STEPS = 12
CUTS = {"whole": (190,), "pieces": (30, 64, 1, 95), "one by one": (150, *(1,) * 40)}


def make_executor(spec: ModelSpec, *, graphs: bool) -> TorchExecutor:
    from ramet.runtime.attention.triton_backend import TritonAttention
    from ramet.runtime.executor.cuda_graphs import StepGraphs
    from ramet.runtime.models.fused_step import FusedStep

    torch.manual_seed(0)
    model = Transformer(spec, dtype=torch.bfloat16, device=DEVICE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.06)
    attention = TritonAttention(num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads, device=DEVICE, in_order=True)
    info = ModelInfo("test", "Test", 1000, 1024, 3, spec.num_kv_heads, spec.head_dim, 0, 0, 0, "bfloat16")
    step, pool = (
        FusedStep(model, attention, in_order=True),
        allocate_pool(info, num_pages=8192, page_size=1, dtype=torch.bfloat16, device=DEVICE),
    )

    def forward(batch: ForwardBatch) -> torch.Tensor:
        attention.prepare(batch, pool)
        return step.forward(batch)

    path = (lambda tables: StepGraphs(step, attention, pool, tables, 1000, (1, 4, 24))) if graphs else None
    return TorchExecutor(forward, info, Capacity(8192, 1, 80), DEVICE, fast_path=path, one_by_one=True)


def plans(cuts: tuple[int, ...], neighbours: int) -> list[BatchPlan]:
    """The request in slot 2, first in pieces, then token by token, behind neighbours that come with it."""
    found: list[BatchPlan] = []
    done = 0
    for number in range(len(cuts) + STEPS):
        rows = [_neighbour(slot, number) for slot in range(3, 3 + neighbours)]
        reset = RowStart(SamplingParams(temperature=1.0, top_p=0.95), 77, LogprobParams(-1, 3), PROMPT) if not number else None
        pages = tuple(range(7800, 8100)) if not number else ()
        length = cuts[number] if number < len(cuts) else 1
        tokens = PROMPT[done : done + length] if number < len(cuts) else (PENDING_TOKEN,)
        rows.insert(neighbours // 2, PlanRow("it", 2, tokens, done, 0 if not number else 300, pages, number >= len(cuts) - 1, reset))
        found.append(BatchPlan(number, tuple(rows)))
        done += length
    return found


def _neighbour(slot: int, number: int) -> PlanRow:
    prompt = tuple((slot * i + 5) % 1000 for i in range(1 + 9 * (slot % 7)))
    if not number:
        reset = RowStart(SamplingParams(temperature=float(slot % 2)), slot, None, prompt)
        return PlanRow(str(slot), slot, prompt, 0, 0, tuple(range(slot * 100, slot * 100 + 100)), True, reset)
    return PlanRow(str(slot), slot, (PENDING_TOKEN,), len(prompt) + number - 1, 100, (), True)


def answer(executor: TorchExecutor, steps: list[BatchPlan]) -> list[RowResult]:
    pending = []
    for plan in steps:
        executor.launch(plan)
        pending.append(executor.sample(plan, None))
    results = [step.result() for step in pending]
    executor.close()
    found = [result.rows[[row.request_id for row in plan.rows].index("it")] for plan, result in zip(steps, results, strict=True)]
    return [row for row in found if row.token_ids]


@pytest.mark.parametrize("spec", [SPEC, QWEN_LIKE, GEMMA_LIKE], ids=["llama", "qwen", "gemma"])
def test_the_same_bits_in_every_batch_and_by_every_cut(spec: ModelSpec) -> None:
    expected = answer(make_executor(spec, graphs=False), plans(CUTS["whole"], 0))
    assert len(expected) == STEPS + 1 and len({row.token_ids for row in expected}) > 3
    for graphs, cuts, neighbours in (
        (True, "whole", 0), (True, "pieces", 0), (False, "pieces", 9), (True, "one by one", 3), (True, "whole", 23), (False, "whole", 70),
    ):  # fmt: skip
        given = answer(make_executor(spec, graphs=graphs), plans(CUTS[cuts], neighbours))
        assert given == expected, f"graphs {graphs}, {cuts}, {neighbours} neighbours"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("rows", "depth"), [(500, 1024), (256, 4096), (96, 200)])
def test_products_with_one_order(rows: int, depth: int, dtype: torch.dtype) -> None:
    from ramet.runtime.kernels.gpu.fixed_linear import fixed_linear

    torch.manual_seed(depth)
    x, w = torch.randn(300, depth, device=DEVICE).to(dtype), (torch.randn(rows, depth, device=DEVICE) / depth**0.5).to(dtype)
    bias = torch.randn(rows, device=DEVICE).to(dtype)
    many = fixed_linear(x, w, bias, dtype=torch.float32)
    expected = (x.double() @ w.double().t() + bias.double()).float()
    assert (many - expected).norm() / expected.norm() < 2e-3
    for first, last in ((0, 1), (17, 18), (100, 164), (3, 300)):
        assert torch.equal(fixed_linear(x[first:last], w, bias, dtype=torch.float32), many[first:last])
