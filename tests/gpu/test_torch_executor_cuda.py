"""The executor on a CUDA device against the same executor on the CPU: plans queued ahead, every kind of sampling."""

from __future__ import annotations

import pytest
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.executor.kv_pool import allocate_pool
from ramet.runtime.executor.torch_executor import TorchExecutor
from ramet.runtime.model_spec import LayerSpec, ModelSpec, RopeSpec
from ramet.runtime.models.transformer import Transformer
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, Capacity, ModelInfo, PlanRow, RowResult, RowStart
from ramet.runtime.request import LogprobParams, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SPEC = ModelSpec(
    architecture="Test", vocab_size=97, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=2, head_dim=8,
    layers=(LayerSpec(RopeSpec(10000.0, 8)), LayerSpec(RopeSpec(10000.0, 8), window=9)), norm_eps=1e-5, activation="silu",
    context_len=512, attention_scale=8**-0.5, tied_embeddings=True,
)  # fmt: skip
INFO = ModelInfo("test", "Test", 97, 512, 2, 2, 8, 0, 0, 0, "float32")
PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.2, top_k=9, top_p=0.9),
    SamplingParams(temperature=0.9, min_p=0.05, repetition_penalty=1.2, frequency_penalty=0.3, min_new_tokens=4, logit_bias={3: 1.5}),
)


def make_executor(device: torch.device) -> TorchExecutor:
    torch.manual_seed(0)
    weights = Transformer(SPEC, dtype=torch.float32, device=torch.device("cpu"))
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = Transformer(SPEC, dtype=torch.float32, device=device).eval()
    model.load_state_dict(weights.state_dict())
    attention, pool = TorchAttention(), allocate_pool(INFO, num_pages=64, page_size=4, dtype=torch.float32, device=device)

    def forward(batch: ForwardBatch) -> torch.Tensor:
        attention.prepare(batch, pool)
        logits: torch.Tensor = model(batch, attention)
        return logits

    return TorchExecutor(forward, INFO, Capacity(64, 4, 8), device)


def generate(executor: TorchExecutor) -> list[tuple[RowResult, ...]]:
    """Four requests with prompts of 5, 12, 19 and 26 tokens, nine steps, all queued before the first result is read."""
    pending = []
    for step in range(9):
        rows = []
        for slot, params in enumerate(PARAMS):
            prompt = tuple((7 * i + slot) % 97 for i in range(5 + 7 * slot))
            logprobs = LogprobParams(0, 2, (1,))
            if step == 0:
                start = RowStart(params, 10 + slot, logprobs, prompt, stop_token_ids=(5,))
                pages = tuple(range(slot * 16, slot * 16 + 12))
                rows.append(PlanRow(str(slot), slot, prompt, 0, 0, pages, True, start, prompt_logprobs_from=0))
            else:
                rows.append(PlanRow(str(slot), slot, (PENDING_TOKEN,), len(prompt) + step - 1, 12, (), True))
        plan = BatchPlan(step, tuple(rows))
        executor.launch(plan)
        pending.append(executor.sample(plan, None))
    results = [step.result() for step in pending]
    assert all(result.seconds > 0 for result in results)
    executor.close()
    return [result.rows for result in results]


def test_cuda_equals_cpu() -> None:
    on_cpu, on_gpu = generate(make_executor(torch.device("cpu"))), generate(make_executor(torch.device("cuda", 0)))
    for expected, given in zip(on_cpu, on_gpu, strict=True):
        for left, right in zip(expected, given, strict=True):
            assert left.token_ids == right.token_ids
            for a, b in zip((*left.logprobs, *left.prompt_logprobs), (*right.logprobs, *right.prompt_logprobs), strict=True):
                assert a.token_id == b.token_id
                assert a.logprob is b.logprob is None or a.logprob == pytest.approx(b.logprob, abs=1e-3)
