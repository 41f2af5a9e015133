"""Both executors on a small random decoder: any plan, any chunking, any pages give what one pass over the whole sequence gives."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import InternalError, OutOfMemory
from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.executor.cpu_choice import CpuChoice
from ramet.runtime.executor.cpu_executor import CpuExecutor
from ramet.runtime.executor.cpu_runner import CpuRunner
from ramet.runtime.executor.executor import Executor
from ramet.runtime.executor.prompt_pieces import split_prompt
from ramet.runtime.executor.step_runner import Forward
from ramet.runtime.executor.torch_executor import TorchExecutor
from ramet.runtime.kernels import cpu_library
from ramet.runtime.kernels.cpu_kv_pool import KV_TYPES, CpuKvPool
from ramet.runtime.kernels.packed_weight import CpuContext
from ramet.runtime.model_spec import LayerSpec, ModelSpec, RopeSpec
from ramet.runtime.models.decoder_step import StepBatch
from ramet.runtime.models.transformer import Transformer
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, Capacity, ModelInfo, PlanRow, RowStart
from ramet.runtime.request import LogprobParams, SamplingParams
from tests.waiting import PATIENCE

CPU = torch.device("cpu")
VOCAB, LAYERS, KV_HEADS, HEAD_DIM = 97, 2, 2, 8
SPEC = ModelSpec(
    architecture="Test", vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM,
    layers=(LayerSpec(RopeSpec(10000.0, HEAD_DIM)), LayerSpec(RopeSpec(10000.0, HEAD_DIM), window=9)), norm_eps=1e-5, activation="silu",
    context_len=2048, attention_scale=HEAD_DIM**-0.5, tied_embeddings=True,
)  # fmt: skip
INFO = ModelInfo("test", "Test", VOCAB, 2048, LAYERS, KV_HEADS, HEAD_DIM, 0, 0, 0, "float32")
GREEDY = SamplingParams(temperature=0.0)
SMALL = Capacity(64, 1, 4)
on_both = pytest.mark.parametrize("kind", ["torch", "cpu"])


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(SPEC, dtype=torch.float32, device=CPU).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def poisoned_pool(num_pages: int, page_size: int) -> KVPool:
    def cache() -> tuple[torch.Tensor, ...]:
        return tuple(torch.full((num_pages * page_size, KV_HEADS, HEAD_DIM), float("nan")) for _ in range(LAYERS))

    return KVPool(cache(), cache(), page_size)


def make_executor(kind: str, model: Transformer, page_size: int = 1, num_pages: int = 600, max_running: int = 8) -> Executor:
    attention, pool = TorchAttention(), poisoned_pool(num_pages, page_size)

    def forward(batch: ForwardBatch) -> torch.Tensor:
        attention.prepare(batch, pool)
        logits: torch.Tensor = model(batch, attention)
        return logits

    return executor_of(kind, forward, Capacity(num_pages, page_size, max_running))


def executor_of(kind: str, forward: Forward, capacity: Capacity = SMALL) -> Executor:
    """Over `forward`, which has a pool of its own."""
    if kind == "torch":
        return TorchExecutor(forward, INFO, capacity, CPU)
    if not cpu_library.processor_features() >= cpu_library.REQUIRED_FEATURES:
        pytest.skip("the processor lacks AVX2, FMA or F16C")
    unused = CpuKvPool((), (), capacity.page_size, KV_TYPES["float32"])
    return CpuExecutor(CpuRunner(TensorStep(forward), unused, INFO, capacity, CpuChoice(CpuContext(1))), INFO, capacity)


class TensorStep:
    """Implements `CpuStep` by a forward pass over tensors."""

    def __init__(self, forward: Forward) -> None:
        self.forward_tensors = forward

    def forward(self, batch: StepBatch, pool: CpuKvPool, logits: npt.NDArray[np.float32]) -> None:
        table, lens = batch.page_tables[batch.lines], np.diff(batch.query_starts)
        arrays = (batch.token_ids, batch.positions, batch.places, batch.query_starts, batch.kv_lens, table, batch.logit_indices)
        tensors = [torch.from_numpy(array) for array in arrays]
        with torch.inference_mode():
            logits[:] = self.forward_tensors(ForwardBatch(*tensors, tuple(lens.tolist()), tuple(batch.kv_lens.tolist()))).numpy()


def whole_sequence_logits(model: Transformer, tokens: tuple[int, ...]) -> torch.Tensor:
    """[len(tokens), vocab]: one prefill, all logits."""
    n = len(tokens)
    attention, pool = TorchAttention(), poisoned_pool(n, 1)
    batch = ForwardBatch(
        torch.tensor(tokens), torch.arange(n), torch.arange(n), torch.tensor([0, n]), torch.tensor([n]),
        torch.arange(n, dtype=torch.int32)[None], torch.arange(n), (n,), (n,),
    )  # fmt: skip
    with torch.inference_mode():
        attention.prepare(batch, pool)
        logits: torch.Tensor = model(batch, attention)
    return logits


def greedy_tokens_after(model: Transformer, prompt: tuple[int, ...], out: list[int]) -> list[int]:
    """What each token of `out` should be, given the prompt and the tokens before it."""
    logits = whole_sequence_logits(model, prompt + tuple(out[:-1]))
    return logits[len(prompt) - 1 :].argmax(-1).tolist()


class Sequence:
    """Plans one request's rows: chunks of its prompt, then one pending token at a time, on pages from a shuffled supply."""

    def __init__(self, slot: int, prompt: tuple[int, ...], pages: Iterator[int], page_size: int, chunk: int) -> None:
        self.slot, self.prompt, self.pages, self.page_size, self.chunk = slot, prompt, pages, page_size, chunk
        self.done = self.num_pages = 0
        self.out: list[int] = []

    def next_row(self) -> PlanRow:
        prompt_part = self.prompt[self.done : self.done + self.chunk]
        tokens = prompt_part or (PENDING_TOKEN,)
        end = self.done + len(tokens)
        new = tuple(next(self.pages) for _ in range(-(-end // self.page_size) - self.num_pages))
        reset = RowStart(GREEDY, self.slot, None, self.prompt) if self.done == 0 else None
        row = PlanRow(f"r{self.slot}", self.slot, tokens, self.done, self.num_pages, new, end >= len(self.prompt), reset)
        self.done, self.num_pages = end, self.num_pages + len(new)
        return row


@on_both
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=45).map(tuple), min_size=1, max_size=4),
    page_size=st.sampled_from([1, 4, 16]),
    chunk=st.sampled_from([3, 17, 64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=8, deadline=None)
def test_mixed_chunked_plans_give_the_tokens_of_whole_passes(
    kind: str, model: Transformer, prompts: list[tuple[int, ...]], page_size: int, chunk: int, seed: int
) -> None:
    """Requests join at different steps; three steps are queued before the first result is read."""
    rng = random.Random(seed)
    pages = iter(rng.sample(range(600), 600))
    sequences = [Sequence(slot, prompt, pages, page_size, chunk) for slot, prompt in enumerate(prompts)]
    executor = make_executor(kind, model, page_size)
    pending = []
    for step in range(20):
        active = [s for s in sequences if step >= s.slot]
        rng.shuffle(active)
        plan = BatchPlan(step, tuple(s.next_row() for s in active))
        executor.launch(plan)
        pending.append((active, executor.sample(plan, None)))
    for active, step_result in pending:
        for sequence, row in zip(active, step_result.result().rows, strict=True):
            sequence.out += row.token_ids
    executor.close()
    for sequence in sequences:
        if sequence.out:
            assert sequence.out == greedy_tokens_after(model, sequence.prompt, sequence.out)


def run(executor: Executor, *rows: PlanRow) -> list[object]:
    plan = BatchPlan(0, rows)
    executor.launch(plan)
    return list(executor.sample(plan, None).result().rows)


def prompt_row(prompt: tuple[int, ...], sampling: SamplingParams, logprobs: LogprobParams | None, **changes: object) -> PlanRow:
    row = PlanRow("r", 0, prompt, 0, 0, tuple(range(len(prompt))), True, RowStart(sampling, 5, logprobs, prompt))
    return row._replace(**changes)


@on_both
@pytest.mark.parametrize("wanted_from", [0, 1, 7, 399, 599])
def test_prompt_logprobs_in_pieces_equal_those_of_one_pass(kind: str, model: Transformer, wanted_from: int) -> None:
    prompt = tuple(random.Random(1).choices(range(VOCAB), k=600))
    expected = torch.log_softmax(whole_sequence_logits(model, prompt).double(), -1)
    executor = make_executor(kind, model, num_pages=700)
    params = LogprobParams(wanted_from, 3, (4, 50))
    (result,) = run(executor, prompt_row(prompt, GREEDY, params, prompt_logprobs_from=wanted_from))
    executor.close()
    given = list(result.prompt_logprobs)  # type: ignore[attr-defined]
    if wanted_from == 0:
        first = given.pop(0)
        assert (first.token_id, first.logprob) == (prompt[0], None)
    positions = range(max(wanted_from, 1), 600)
    assert [entry.token_id for entry in given] == [prompt[p] for p in positions]
    for entry, position in zip(given, positions, strict=True):
        reference = expected[position - 1]
        assert entry.logprob == pytest.approx(float(reference[entry.token_id]), abs=1e-3)
        assert [v for _, v in entry.top] == pytest.approx(reference.topk(3).values.tolist(), abs=1e-3)
        assert entry.chosen == ((4, pytest.approx(float(reference[4]), abs=1e-3)), (50, pytest.approx(float(reference[50]), abs=1e-3)))


@given(num=st.integers(1, 40), start=st.integers(0, 9), wanted_from=st.none() | st.integers(0, 60), limit=st.integers(1, 9))
@settings(deadline=None)
def test_pieces_cover_the_row_and_ask_for_few_logits(num: int, start: int, wanted_from: int | None, limit: int) -> None:
    row = PlanRow("r", 0, tuple(range(100, 100 + num)), start, start, (1, 2), True, prompt_logprobs_from=wanted_from)
    pieces = split_prompt(3, row, limit)
    assert sum((piece.row.token_ids for piece in pieces), ()) == row.token_ids
    assert [piece.row.samples for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum((piece.row.new_pages for piece in pieces), ()) == (1, 2)
    assert all(len(piece.targets) <= limit for piece in pieces)
    predicted = [(piece.row.start + piece.first_wanted + i + 1, target) for piece in pieces for i, target in enumerate(piece.targets)]
    expected = [] if wanted_from is None else [(p, row.token_ids[p - start]) for p in range(max(wanted_from, start + 1), row.end)]
    assert predicted == expected


@on_both
def test_logprobs_are_the_models_own(kind: str, model: Transformer) -> None:
    """Neither bias nor temperature nor penalty shows in them."""
    prompt = (3, 1, 4, 1, 5)
    sampling = SamplingParams(temperature=1.8, logit_bias={60: 80.0}, repetition_penalty=1.9)
    executor = make_executor(kind, model)
    (result,) = run(executor, prompt_row(prompt, sampling, LogprobParams(-1, 2, (9,))))
    executor.close()
    expected = torch.log_softmax(whole_sequence_logits(model, prompt)[-1].double(), -1)
    (entry,) = result.logprobs  # type: ignore[attr-defined]
    assert entry.token_id == 60 and result.token_ids == (60,)  # type: ignore[attr-defined]
    assert entry.logprob == pytest.approx(float(expected[60]), abs=1e-4)
    assert [i for i, _ in entry.top] == expected.topk(2).indices.tolist()
    assert entry.chosen[0][1] == pytest.approx(float(expected[9]), abs=1e-4)


@on_both
def test_an_exception_surfaces_in_its_step_and_the_next_step_runs(kind: str) -> None:
    broken = [True]

    def forward(batch: ForwardBatch) -> torch.Tensor:
        if broken.pop() if broken else False:
            raise ValueError("this step is broken")
        return torch.zeros(len(batch.logit_indices), VOCAB)

    executor = executor_of(kind, forward)
    plan = BatchPlan(0, (prompt_row((1, 2), GREEDY, None),))
    executor.launch(plan)
    pending = executor.sample(plan, None)
    with pytest.raises(ValueError, match="broken"):
        pending.result()
    assert len(run(executor, *plan.rows)) == 1
    executor.close()


@pytest.mark.parametrize(
    ("kind", "error", "flag"), [("torch", torch.OutOfMemoryError, "--mem-fraction-static"), ("cpu", MemoryError, "--chunked-prefill-size")]
)
def test_memory_that_runs_out_in_a_step_names_the_flags(kind: str, error: type[Exception], flag: str) -> None:
    def forward(batch: ForwardBatch) -> torch.Tensor:
        raise error("no 3 GiB")

    executor = executor_of(kind, forward)
    with pytest.raises(OutOfMemory, match=flag):
        run(executor, prompt_row((1, 2), GREEDY, None))
    executor.close()


@on_both
def test_launch_and_sample_return_while_the_model_still_runs(kind: str) -> None:
    release = threading.Event()

    def forward(batch: ForwardBatch) -> torch.Tensor:
        assert release.wait(PATIENCE)
        return torch.zeros(len(batch.logit_indices), VOCAB)

    executor = executor_of(kind, forward)
    plan = BatchPlan(0, (prompt_row((1, 2), GREEDY, None),))
    executor.launch(plan)
    pending = executor.sample(plan, None)
    release.set()  # would never be reached if one of the two had waited
    assert pending.result().rows[0].token_ids == (0,)
    executor.close()


@on_both
def test_close_twice_and_sample_without_launch(kind: str) -> None:
    executor = executor_of(kind, lambda batch: torch.zeros(1, VOCAB))
    with pytest.raises(InternalError, match="without launch"):
        executor.sample(BatchPlan(0, ()), None)
    executor.launch(BatchPlan(0, ()))
    assert executor.sample(BatchPlan(0, ()), None).result().rows == ()
    executor.close()
    executor.close()
