"""A draft model beside the fake one: output never depends on it, one that is the model itself is right every time, and it keeps its pages
in order."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import ConfigError
from ramet.runtime.cache.page_audit import audit
from ramet.runtime.engine.draft_model import DraftModel
from ramet.runtime.executor.executor import Executor, PendingResult
from ramet.runtime.executor.fake import FakeExecutor, FakeModel
from ramet.runtime.plan import BatchPlan, Capacity, TokenMasks
from ramet.runtime.request import FinishKind, LogprobParams, SamplingParams
from tests.runtime.scheduler.automata import AutomatonCompiler, automaton
from tests.runtime.scheduler.drive import Drive, request
from tests.runtime.scheduler.test_guess_policy import Fitful

MODEL = FakeModel(vocab_size=64)
ENDING = FakeModel(vocab_size=64, eos_probability=0.05)
CYCLE = automaton([{1: 1, 5: 1}, {2: 2, 6: 2}, {3: 0, 7: 0}], [])


class Fickle(FakeModel):
    """Says something else at every third position: a draft that is often wrong."""

    def choose(self, logits: Any, start: Any, num_out: int, allowed: Any) -> int:
        token = super().choose(logits, start, num_out, allowed)
        return token if num_out % 3 else (token + 1) % self.vocab_size


def drafted(
    *,
    draft: FakeModel | None = None,
    model: FakeModel = MODEL,
    guesses: int = 4,
    pages: int = 512,
    page_size: int = 1,
    slots: int = 8,
    chunk: int = 64,
    executor: Executor | None = None,
    **options: Any,
) -> tuple[Drive, DraftModel]:
    """`pages`, `page_size`, `slots` and `chunk` are the draft's; without `draft` it is the model itself."""
    made = DraftModel(executor or FakeExecutor(Capacity(pages, page_size, slots), draft or model), model.vocab_size, chunk=chunk)
    options.setdefault("page_size", page_size)
    return Drive(model=model, compiler=AutomatonCompiler(), num_guesses=guesses, guesser=made, **options), made


def idle(model: DraftModel) -> None:
    """Nothing is leaked: slots, leases, pages."""
    assert audit(model.cache) == [] and not model.cache.leases
    assert model.cache.available_pages == model.cache.allocator.num_pages


SAMPLINGS = [
    SamplingParams(max_new_tokens=40, temperature=0.0),
    SamplingParams(max_new_tokens=40, temperature=1.0),
    SamplingParams(max_new_tokens=40, temperature=2.0, top_k=5),
]


@pytest.mark.parametrize("overlap", [False, True], ids=["serial", "overlap"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top_k"])
def test_the_model_as_its_own_draft_is_always_right(sampling: SamplingParams, overlap: bool) -> None:
    runs, model = drafted(overlap=overlap)
    runs.add(*(request(str(i), range(1 + i, 30 + 2 * i), sampling=sampling, seed=i) for i in range(4)))
    runs.run()
    runs.assert_outputs()
    stats = runs.scheduler.stats()
    assert stats.right_guesses_total > 60
    ended_early = sum(len(tokens) < 40 for tokens in runs.tokens.values())
    assert stats.guessed_tokens_total - stats.right_guesses_total <= 4 * ended_early
    for output in runs.ends.values():
        assert output.num_verified > 0 and output.guessed_tokens - output.right_guesses <= 4
    idle(model)


def test_five_tokens_a_step() -> None:
    runs, _ = drafted()
    runs.add(request("a", range(1, 9), 41))
    runs.run()
    assert len(runs.plans) == 1 + 8  # the prompt brings one token, then five come with every step


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top_k"])
@pytest.mark.parametrize(
    "draft", [Fickle(vocab_size=64), FakeModel(vocab_size=80), FakeModel(vocab_size=60)], ids=["fickle", "wider", "narrow"]
)
def test_output_does_not_depend_on_the_draft(draft: FakeModel, sampling: SamplingParams) -> None:
    runs, model = drafted(draft=draft)
    runs.add(*(request(str(i), range(1, 12 + i), sampling=sampling, seed=i) for i in range(5)))
    runs.run()
    runs.assert_outputs()
    assert runs.scheduler.stats().guessed_tokens_total > 20
    idle(model)


def test_sampled_tokens_keep_their_distribution() -> None:
    """The third tokens of 500 seeds with a draft that is wrong in a third of its guesses, and of as many others without one."""
    sampling = SamplingParams(max_new_tokens=3, temperature=1.0)
    counts: list[Counter[int]] = []
    for draft in (Fickle(vocab_size=16), None):
        found: Counter[int] = Counter()
        runs, _ = drafted(
            model=FakeModel(vocab_size=16), draft=draft, guesses=2 if draft else 0, max_running=32, slots=32, schedule_policy="fcfs"
        )
        for seed in range(500) if draft else range(500, 1000):
            runs.add(request(str(seed), (1, 2, 3), sampling=sampling, seed=seed))
        runs.run(max_steps=20000)
        for tokens in runs.tokens.values():
            found[tokens[-1]] += 1
        counts.append(found)
    both = [(counts[0][token], counts[1][token]) for token in range(16)]
    chi_squared = sum((left - right) ** 2 / (left + right) for left, right in both if left + right)
    assert chi_squared < 15 + 5 * 5.5  # of 15 degrees of freedom: mean and five standard deviations


@pytest.mark.parametrize("draft", [None, Fickle(vocab_size=64)], ids=["itself", "fickle"])
@pytest.mark.parametrize("options", [{}, {"disable_jump_forward": True}, {"overlap": True}], ids=["jumps", "no jumps", "overlap"])
def test_grammars(draft: FakeModel | None, options: dict[str, Any]) -> None:
    runs, model = drafted(draft=draft, **options)
    runs.add(request("a", range(1, 10), 40, grammar=CYCLE), request("b", range(3, 10), 12))
    runs.add(request("c", range(2, 10), grammar=CYCLE, sampling=SamplingParams(max_new_tokens=30, temperature=1.0), seed=5))
    runs.settle_grammars()
    runs.run()
    runs.assert_outputs()
    stats = runs.scheduler.stats()
    assert stats.guessed_tokens_total > 20
    if draft is None:
        assert stats.right_guesses_total == stats.guessed_tokens_total or runs.finish("b").kind is FinishKind.STOP
    idle(model)


def test_logprobs_come_with_their_tokens() -> None:
    found = []
    for guesses in (0, 4):
        runs, _ = drafted(draft=Fickle(vocab_size=64), guesses=guesses)
        runs.add(request("a", range(1, 10), 20, logprobs=LogprobParams(start_len=3, top=2)))
        runs.run()
        found.append((runs.tokens["a"], runs.logprobs["a"], runs.prompt_logprobs["a"]))
        assert (runs.scheduler.stats().right_guesses_total > 5) == (guesses > 0)
    assert found[0] == found[1] and len(found[0][1]) == 20


def test_requests_that_begin_alike_share_the_drafts_pages() -> None:
    computed = []
    for prompts in ((range(1, 60), [*range(1, 58), 3]), (range(1, 60), range(2, 61))):
        counting = Counting(FakeExecutor(Capacity(512, 1, 8), MODEL))
        runs, _ = drafted(executor=counting)
        for number, prompt in enumerate(prompts):
            runs.add(request(str(number), prompt, 6))
            while str(number) not in runs.ends:
                runs.step()
        computed.append(counting.num_tokens)
    assert computed[0] < computed[1] - 50


class Counting:
    """An executor that counts what it is given, and fails when told to."""

    def __init__(self, executor: FakeExecutor, fails_at: int = -1) -> None:
        self._executor, self._fails_at = executor, fails_at
        self.num_tokens = self.num_steps = 0
        self.is_closed = False

    @property
    def model(self) -> Any:
        return self._executor.model

    @property
    def capacity(self) -> Capacity:
        return self._executor.capacity

    def launch(self, plan: BatchPlan) -> None:
        self.num_tokens += plan.num_tokens
        self.num_steps += 1
        if self.num_steps == self._fails_at:
            raise RuntimeError("the draft's device is gone")
        self._executor.launch(plan)

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        return self._executor.sample(plan, masks)

    def close(self) -> None:
        self.is_closed = True


def test_a_draft_that_fails_is_given_up() -> None:
    counting = Counting(FakeExecutor(Capacity(512, 1, 8), MODEL), fails_at=5)
    runs, model = drafted(executor=counting)
    runs.add(request("a", range(1, 10), 30, grammar=CYCLE), request("b", range(1, 20), 30))
    runs.settle_grammars()
    runs.run()
    runs.assert_outputs()
    assert counting.num_steps == 5
    idle(model)
    runs.scheduler.close()
    assert counting.is_closed


@pytest.mark.parametrize("tight", [{"slots": 1}, {"pages": 30}, {"pages": 12, "page_size": 4}, {"chunk": 3}], ids=str)
def test_where_the_draft_has_no_room_nothing_is_guessed(tight: dict[str, int]) -> None:
    runs, model = drafted(**tight)
    runs.add(*(request(str(i), range(1 + i, 14 + i), 20, seed=i) for i in range(4)))
    runs.run()
    runs.assert_outputs()
    stats = runs.scheduler.stats()
    assert stats.guessed_tokens_total > 0
    idle(model)


def test_a_draft_of_a_short_context_guesses_within_it() -> None:
    runs, model = drafted(draft=FakeModel(vocab_size=64, context_len=24))
    runs.add(request("a", range(1, 10), 40))
    runs.run()
    assert len(runs.tokens["a"]) == 40
    assert 0 < runs.scheduler.stats().guessed_tokens_total <= 24
    idle(model)


def test_abort_and_flush() -> None:
    runs, model = drafted()
    runs.add(request("a", range(1, 20), 40), request("b", range(1, 25), 40))
    for _ in range(4):
        runs.step()
    assert runs.scheduler.abort("a")
    runs.run()
    assert runs.finish("a").kind is FinishKind.ABORT and len(runs.tokens["b"]) == 40
    idle(model)
    assert runs.scheduler.flush_cache() and model.cache.tree.num_tokens == 0


@given(data=st.data(), seed=st.integers(0, 10**6), page_size=st.sampled_from([1, 4]), overlap=st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_schedule(data: st.DataObject, seed: int, page_size: int, overlap: bool) -> None:
    """Few pages for both models, so that requests are retracted and drafts evicted; some are aborted."""
    rng = random.Random(seed)
    sizes: dict[str, Any] = {"pages": rng.choice([10, 40]) * 4 // page_size, "num_pages": rng.choice([24, 60]) * 4 // page_size}
    draft = rng.choice([None, Fickle(vocab_size=64)])
    sizes |= {"slots": rng.choice([2, 8]), "guess_policy": rng.choice([None, Fitful(seed)])}
    runs, model = drafted(draft=draft, model=ENDING, page_size=page_size, overlap=overlap, **sizes)
    aborted = set()
    for number in range(data.draw(st.integers(1, 7))):
        sampling = SamplingParams(max_new_tokens=rng.randint(1, 30), temperature=rng.choice([0.0, 1.0]))
        grammar = CYCLE if rng.random() < 0.4 else None
        runs.add(
            request(str(number), [rng.randint(1, 4) for _ in range(rng.randint(1, 40))], sampling=sampling, seed=number, grammar=grammar)
        )
        runs.settle_grammars()
        for _ in range(rng.randint(0, 6)):
            runs.step()
        if rng.random() < 0.2 and runs.scheduler.abort(str(number)):
            aborted.add(str(number))
        assert audit(model.cache) == []
    runs.run()
    for request_id in set(runs.requests) - aborted:
        assert tuple(runs.tokens[request_id]) == runs.expected(request_id)
    idle(model)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="same tokenizer"):
        DraftModel(FakeExecutor(Capacity(8, 1, 1), FakeModel(vocab_size=5000)), 64, chunk=8)


@pytest.mark.parametrize("width", [40, 80])
def test_neither_model_is_given_a_token_that_only_the_other_has(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of an embedding that there are not: a device that is asked for one fails for good, and a step in C++ reads what lies there."""
    runs, model = drafted(draft=FakeModel(vocab_size=width))
    given: list[int] = []
    launch = model._executor.launch

    def watched(plan: BatchPlan) -> None:
        given.extend(token for row in plan.rows for token in row.token_ids)
        launch(plan)

    monkeypatch.setattr(model._executor, "launch", watched)
    sampling = SamplingParams(max_new_tokens=30, temperature=1.0)
    runs.add(*(request(str(i), [1, 2, 3, 30 + 10 * i], sampling=sampling, seed=i) for i in range(4)))
    runs.run()
    runs.assert_outputs()
    assert runs.scheduler.stats().guessed_tokens_total > 0
    assert max(given) < width
    assert max(token for plan in runs.plans for row in plan.rows for token in row.token_ids) < MODEL.vocab_size
    idle(model)
