"""Jump-forward on the embedded model: the tokens, and to the last bit the logprobs, of masking every token; the text is theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from ramet.grammar.compiler import create_grammar_compiler
from ramet.grammar.matcher import GrammarCompiler, Vocabulary
from ramet.grammar.patterns import choices_regex
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.config import EngineConfig, MemoryConfig, ScheduleConfig
from ramet.runtime.executor.default_executor import create_executor
from ramet.runtime.executor.executor import Executor
from ramet.runtime.model_files import locate_model
from ramet.runtime.request import EngineStats, GrammarSpec, LogprobParams, Request, RequestOutput, SamplingParams, TokenLogprob
from ramet.runtime.scheduler.scheduler import Scheduler
from ramet.runtime.text.tokenizer import HfTokenizer, load_tokenizer

pytestmark = pytest.mark.model

PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "address": {
            "type": "object",
            "properties": {"kind": {"enum": ["home", "work", "don't know yet"]}, "source": {"const": "it's a  constant: naïve\n — 12"}},
            "required": ["kind", "source"],
            "additionalProperties": False,
        },
    },
    "required": ["first_name", "age", "address"],
    "additionalProperties": False,
}
CALL = {
    "type": "object",
    "properties": {
        "name": {"enum": ["get_current_weather", "get_weather_forecast"]},
        "arguments": {
            "type": "object",
            "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer", "maximum": 9, "minimum": 0}},
            "required": ["unit", "days"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
GRAMMARS = (
    GrammarSpec("json_schema", json.dumps(PERSON)),
    GrammarSpec("json_schema", json.dumps(CALL)),
    GrammarSpec("regex", r"The capital of (France|Spain) is [A-Z][a-z]{2,8}, isn't it\?  Yes, \d\."),
    GrammarSpec("regex", choices_regex(["positive review", "positively bad", "negative"])),
    GrammarSpec("ebnf", 'start: "<answer>" WORD ("," " " WORD)~1..2 "</answer>"\nWORD: /[a-z]{1,6}/'),
)


@dataclass
class Ran:
    tokens: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[TokenLogprob]] = field(default_factory=dict)
    ends: dict[str, RequestOutput] = field(default_factory=dict)
    stats: EngineStats = field(default_factory=EngineStats)


@dataclass
class Bench:
    executor: Executor
    tokenizer: HfTokenizer
    compiler: GrammarCompiler

    def run(self, requests: list[Request], *, overlap: bool, num_guesses: int = 0, **options: bool) -> Ran:
        capacity, model = self.executor.capacity, self.executor.model
        cache = PrefixCache(capacity.num_pages, capacity.page_size, "lru")
        schedule = ScheduleConfig(chunked_prefill_size=64, **options)
        scheduler = Scheduler(capacity, model.context_len, model.vocab_size, schedule, cache, self.compiler, num_guesses=num_guesses)
        for request in requests:
            scheduler.add(request)
        ran, flight = Ran(), None
        while scheduler.has_work:
            if flight is not None and (not overlap or scheduler.wants_results_first):
                self._take(ran, scheduler.commit(flight[0], flight[1].result()))
                flight = None
            plan = scheduler.plan()
            if plan is not None:
                self.executor.launch(plan)
            if flight is not None:
                self._take(ran, scheduler.commit(flight[0], flight[1].result()))
            flight = None if plan is None else (plan, self.executor.sample(plan, scheduler.masks(plan)))
            self._take(ran, scheduler.drain())
        ran.stats = scheduler.stats()
        scheduler.close()
        return ran

    def _take(self, ran: Ran, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            ran.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            ran.logprobs.setdefault(output.request_id, []).extend(output.logprobs)
            if output.finish is not None:
                ran.ends[output.request_id] = output


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    executor = create_executor(EngineConfig(memory=MemoryConfig(max_total_tokens=4096)))
    tokenizer = load_tokenizer(locate_model(None))
    vocabulary = Vocabulary(tokenizer.token_bytes(), tokenizer.special_ids, tokenizer.eos_token_ids, executor.model.vocab_size)
    yield Bench(executor, tokenizer, create_grammar_compiler("llguidance", vocabulary, tokenizer.encode_continuation))
    executor.close()


def requests(tokenizer: HfTokenizer, sampling: SamplingParams, logprobs: LogprobParams | None = None) -> list[Request]:
    prompt = tuple(tokenizer.encode("Ana Lopez, 34, lives in Lisbon. As data:"))
    stop = tokenizer.eos_token_ids
    return [
        Request(request_id=str(i), prompt_ids=prompt, sampling=sampling, seed=i, stop_token_ids=stop, grammar=grammar, logprobs=logprobs)
        for i, grammar in enumerate(GRAMMARS)
    ]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_new_tokens=60, temperature=0.0, frequency_penalty=0.7, repetition_penalty=1.1),
        SamplingParams(max_new_tokens=60, temperature=1.0, top_p=0.9),
        SamplingParams(max_new_tokens=13, temperature=0.0),
    ],
    ids=["greedy, penalties", "seeded", "cut short"],
)
def test_tokens_are_those_of_masking_every_one(bench: Bench, sampling: SamplingParams) -> None:
    wanted = requests(bench.tokenizer, sampling)
    twin = bench.run(wanted, overlap=False, disable_jump_forward=True)
    for overlap in (False, True):
        jumped = bench.run(wanted, overlap=overlap)
        assert jumped.tokens == twin.tokens
        assert {key: end.finish for key, end in jumped.ends.items()} == {key: end.finish for key, end in twin.ends.items()}
        assert jumped.stats.masked_rows_total < twin.stats.masked_rows_total  # steps depend on when each grammar was compiled
    if sampling.max_new_tokens > 13:
        _check_texts(bench.tokenizer, jumped)


def _check_texts(tokenizer: HfTokenizer, ran: Ran) -> None:
    texts = {key: tokenizer.decode(tokens) for key, tokens in ran.tokens.items()}
    assert set(json.loads(texts["0"])) == set(PERSON["properties"]) and set(json.loads(texts["1"])) == set(CALL["properties"])
    for key, end in ran.ends.items():
        assert 0 < end.forced_tokens < len(ran.tokens[key])


def test_logprobs_are_those_of_masking_every_token(bench: Bench) -> None:
    wanted = requests(bench.tokenizer, SamplingParams(max_new_tokens=40, temperature=0.0), LogprobParams(top=3))
    twin = bench.run(wanted, overlap=False, disable_jump_forward=True)
    jumped = bench.run(wanted, overlap=True)
    assert jumped.tokens == twin.tokens
    for key, entries in jumped.logprobs.items():
        assert [entry.token_id for entry in entries] == jumped.tokens[key]
        assert [entry.logprob for entry in entries] == pytest.approx([entry.logprob for entry in twin.logprobs[key]], abs=1e-6)
        assert [entry.top[0][0] for entry in entries] == [entry.top[0][0] for entry in twin.logprobs[key]]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guesses_change_nothing_and_save_passes(bench: Bench, temperature: float) -> None:
    sampling = SamplingParams(max_new_tokens=48, temperature=temperature)
    text = "red, green, blue, red, green, blue, red, green, blue, red, green,"
    free = replace(requests(bench.tokenizer, sampling)[0], request_id="free", prompt_ids=tuple(bench.tokenizer.encode(text)), grammar=None)
    wanted = [*requests(bench.tokenizer, sampling), free]
    plain = bench.run(wanted, overlap=True)
    guessed = bench.run(wanted, overlap=True, num_guesses=5)
    assert guessed.tokens == plain.tokens
    assert {key: end.finish for key, end in guessed.ends.items()} == {key: end.finish for key, end in plain.ends.items()}
    assert 0 < guessed.stats.right_guesses_total < guessed.stats.guessed_tokens_total
    alone = [bench.run([free], overlap=True, num_guesses=guesses).stats.num_steps_total for guesses in (0, 5)]
    assert alone[1] < alone[0] * (0.5 if temperature == 0 else 1)
