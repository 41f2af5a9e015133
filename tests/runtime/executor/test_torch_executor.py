"""TorchExecutor on a small random decoder: any plan, any chunking, any pages give what one pass over the whole sequence gives."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import InternalError, OutOfMemory
from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool
from ramet.runtime.attention.torch_backend import TorchAttention
from ramet.runtime.executor.logprobs import split_prompt
from ramet.runtime.executor.torch_executor import TorchExecutor
from ramet.runtime.model_spec import LayerSpec, ModelSpec, RopeSpec
from ramet.runtime.models.transformer import Transformer
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, Capacity, ModelInfo, PlanRow, RowStart
from ramet.runtime.request import LogprobParams, SamplingParams

CPU = torch.device("cpu")
VOCAB, LAYERS, KV_HEADS, HEAD_DIM = 97, 2, 2, 8
SPEC = ModelSpec(
    architecture="Test", vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM,
    layers=(LayerSpec(RopeSpec(10000.0, HEAD_DIM)), LayerSpec(RopeSpec(10000.0, HEAD_DIM), window=9)), norm_eps=1e-5, activation="silu",
    context_len=2048, attention_scale=HEAD_DIM**-0.5, tied_embeddings=True,
)  # fmt: skip
INFO = ModelInfo("test", "Test", VOCAB, 2048, LAYERS, KV_HEADS, HEAD_DIM, 0, 0, 0, "float32")
GREEDY = SamplingParams(temperature=0.0)


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


def make_executor(model: Transformer, page_size: int = 1, num_pages: int = 600, max_running: int = 8) -> TorchExecutor:
    attention, pool = TorchAttention(), poisoned_pool(num_pages, page_size)

    def forward(batch: ForwardBatch) -> torch.Tensor:
        attention.prepare(batch, pool)
        logits: torch.Tensor = model(batch, attention)
        return logits

    return TorchExecutor(forward, INFO, Capacity(num_pages, page_size, max_running), CPU)


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


@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=45).map(tuple), min_size=1, max_size=4),
    page_size=st.sampled_from([1, 4, 16]),
    chunk=st.sampled_from([3, 17, 64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=8, deadline=None)
def test_mixed_chunked_plans_give_the_tokens_of_whole_passes(
    model: Transformer, prompts: list[tuple[int, ...]], page_size: int, chunk: int, seed: int
) -> None:
    """Requests join at different steps; three steps are queued before the first result is read."""
    rng = random.Random(seed)
    pages = iter(rng.sample(range(600), 600))
    sequences = [Sequence(slot, prompt, pages, page_size, chunk) for slot, prompt in enumerate(prompts)]
    executor = make_executor(model, page_size)
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


def run(executor: TorchExecutor, *rows: PlanRow) -> list[object]:
    plan = BatchPlan(0, rows)
    executor.launch(plan)
    return list(executor.sample(plan, None).result().rows)


def prompt_row(prompt: tuple[int, ...], sampling: SamplingParams, logprobs: LogprobParams | None, **changes: object) -> PlanRow:
    row = PlanRow("r", 0, prompt, 0, 0, tuple(range(len(prompt))), True, RowStart(sampling, 5, logprobs, prompt))
    return row._replace(**changes)


@pytest.mark.parametrize("wanted_from", [0, 1, 7, 399, 599])
def test_prompt_logprobs_in_pieces_equal_those_of_one_pass(model: Transformer, wanted_from: int) -> None:
    prompt = tuple(random.Random(1).choices(range(VOCAB), k=600))
    expected = torch.log_softmax(whole_sequence_logits(model, prompt).double(), -1)
    executor = make_executor(model, num_pages=700)
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


def test_logprobs_are_the_models_own(model: Transformer) -> None:
    """Neither bias nor temperature nor penalty shows in them."""
    prompt = (3, 1, 4, 1, 5)
    sampling = SamplingParams(temperature=1.8, logit_bias={60: 80.0}, repetition_penalty=1.9)
    executor = make_executor(model)
    (result,) = run(executor, prompt_row(prompt, sampling, LogprobParams(-1, 2, (9,))))
    executor.close()
    expected = torch.log_softmax(whole_sequence_logits(model, prompt)[-1].double(), -1)
    (entry,) = result.logprobs  # type: ignore[attr-defined]
    assert entry.token_id == 60 and result.token_ids == (60,)  # type: ignore[attr-defined]
    assert entry.logprob == pytest.approx(float(expected[60]), abs=1e-4)
    assert [i for i, _ in entry.top] == expected.topk(2).indices.tolist()
    assert entry.chosen[0][1] == pytest.approx(float(expected[9]), abs=1e-4)


def test_an_exception_surfaces_in_its_step_and_the_next_step_runs(model: Transformer) -> None:
    broken = [True]

    def forward(batch: ForwardBatch) -> torch.Tensor:
        if broken.pop() if broken else False:
            raise ValueError("this step is broken")
        return torch.zeros(len(batch.logit_indices), VOCAB)

    executor = TorchExecutor(forward, INFO, Capacity(64, 1, 4), CPU)
    plan = BatchPlan(0, (prompt_row((1, 2), GREEDY, None),))
    executor.launch(plan)
    pending = executor.sample(plan, None)
    with pytest.raises(ValueError, match="broken"):
        pending.result()
    assert len(run(executor, *plan.rows)) == 1
    executor.close()


def test_memory_that_runs_out_in_a_step_names_the_flags() -> None:
    def forward(batch: ForwardBatch) -> torch.Tensor:
        raise torch.OutOfMemoryError("no 3 GiB")

    executor = TorchExecutor(forward, INFO, Capacity(64, 1, 4), CPU)
    with pytest.raises(OutOfMemory, match="--mem-fraction-static"):
        run(executor, prompt_row((1, 2), GREEDY, None))
    executor.close()


def test_launch_and_sample_return_while_the_model_still_runs() -> None:
    release = threading.Event()

    def forward(batch: ForwardBatch) -> torch.Tensor:
        assert release.wait(10)
        return torch.zeros(len(batch.logit_indices), VOCAB)

    executor = TorchExecutor(forward, INFO, Capacity(64, 1, 4), CPU)
    plan = BatchPlan(0, (prompt_row((1, 2), GREEDY, None),))
    executor.launch(plan)
    pending = executor.sample(plan, None)
    release.set()  # would never be reached if one of the two had waited
    assert pending.result().rows[0].token_ids == (0,)
    executor.close()


def test_close_twice_and_sample_without_launch() -> None:
    executor = TorchExecutor(lambda batch: torch.zeros(1, VOCAB), INFO, Capacity(64, 1, 4), CPU)
    with pytest.raises(InternalError, match="without launch"):
        executor.sample(BatchPlan(0, ()), None)
    executor.launch(BatchPlan(0, ()))
    assert executor.sample(BatchPlan(0, ()), None).result().rows == ()
    executor.close()
    executor.close()
