"""EAGLE-3 heads beside tiny models: every guess is the plain head's, output never depends on them, and a trained one is often right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.eagle_guesser import EagleGuesser
from ramet.runtime.engine.fan_out import complete_all
from ramet.runtime.models.eagle_head import EagleHead
from ramet.runtime.request import Generation, SamplingParams
from ramet.runtime.scheduler.guess_policy import GuessPolicy
from ramet.runtime.scheduler.request_state import RequestState
from tests.runtime.models.tiny_heads import CONFIG, PlainHead, head_tensors, save_head
from tests.runtime.models.tiny_models import VOCAB, one_thread, tiny_model
from tests.runtime.scheduler.test_guess_policy import Fitful

GREEDY = SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True)
PROMPTS = [tuple((7 * i + 3 * j + j * j) % 90 + 3 for j in range(1 + 9 * i)) for i in range(5)]


@dataclass
class Ran:
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    guesses: list[tuple[list[int], list[int]]] = field(default_factory=list)  # known tokens, and those guessed behind them
    num_right: int = 0


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("Llama", num_hidden_layers=7, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def path(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def run(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    head: Path | None,
    sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
    **options: Any,
) -> Ran:
    ran, guess = Ran(), EagleGuesser.guess

    def watched(self: EagleGuesser, wanted: Sequence[tuple[RequestState, int]]) -> list[list[int]]:
        found = guess(self, wanted)
        ran.guesses += [(state.sequence().tolist(), guessed) for (state, _), guessed in zip(wanted, found, strict=True)]
        return found

    monkeypatch.setattr(EagleGuesser, "guess", watched)
    speculation = {
        "speculative_algorithm": "EAGLE3",
        "speculative_draft_model_path": str(head),
        "speculative_num_steps": 3,
        "speculative_always": True,
    }
    settings = {"model_path": str(path), "device": "cpu", "max_total_tokens": 1024, "grammar_backend": "none", **options}
    config = EngineConfig.from_options(settings | (speculation if head is not None else {}))
    engine = AsyncEngine.start_now(config, worker="thread", text_factory="benchmarks.gpu.peer_factory:no_text")
    try:
        samplings = [sampling] * len(PROMPTS) if isinstance(sampling, SamplingParams) else sampling
        asked = [Generation(request_id=str(i), input_ids=PROMPTS[i], sampling=samplings[i]) for i in range(len(PROMPTS))]
        ran.tokens = [delta.token_ids for delta in asyncio.run(complete_all(engine, asked))]
    finally:
        engine.close_now()
    return ran


def check_guesses(ran: Ran, plain: PlainHead, least: int = 50) -> None:
    """None is missing, and all are the plain head's."""
    assert len(ran.guesses) > least
    for known, guessed in ran.guesses:
        assert guessed and guessed == plain.chain(known, len(guessed))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"page_size": 4},
        {"chunked_prefill_size": 8, "max_running_requests": 3},
        {"disable_overlap_schedule": True},
        {"speculative_always": False},
    ],
    ids=["default", "pages of 4", "pieces", "serial", "now and then"],
)
@one_thread()
def test_guesses_are_the_plain_heads(
    model: PreTrainedModel, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    if options == {"speculative_always": False}:  # overlapped steps between: rows that begin with a token nobody knows yet
        monkeypatch.setattr(GuessPolicy, "guesses", Fitful(1).guesses)
    tensors = head_tensors(model, CONFIG)
    ran = run(monkeypatch, path, save_head(tmp_path / "head", tensors), disable_radix_cache=True, **options)
    assert ran.tokens == run(monkeypatch, path, None).tokens
    check_guesses(ran, PlainHead(model, tensors))


OF_VLLM = {
    "architectures": ["Eagle3Speculator"],
    "draft_vocab_size": VOCAB,
    "eagle_aux_hidden_state_layer_ids": [1, 3, 5],
    "norm_before_residual": True,
    "transformer_layer_config": {key: value for key, value in CONFIG.items() if key not in ("draft_vocab_size", "architectures")},
}
NARROW = {**CONFIG, "hidden_size": 32, "head_dim": 8, "target_hidden_size": 48}
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vllm's": (OF_VLLM, (1, 3, 5)),
    "other layers": ({**CONFIG, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 5]}}, (1, 3, 6)),
    "narrower than the model": (NARROW, (2, 3, 4)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@one_thread()
def test_other_forms_of_checkpoints(
    model: PreTrainedModel, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """Names as vLLM's heads have them, every token guessed, an embedding of the head's own, streams of other layers."""
    config, taps = VARIANTS[variant]
    flat = {**config, **config.get("transformer_layer_config", {})}
    tensors = head_tensors(model, flat)
    if variant != "other layers":
        tensors["embed_tokens.weight"] = torch.randn(VOCAB, flat["hidden_size"], generator=torch.Generator().manual_seed(5))
    plain = PlainHead(model, tensors, flat, taps)
    renamed = {name.replace("midlayer.", "model.layers.0."): tensor for name, tensor in tensors.items()} if config is OF_VLLM else tensors
    if config is OF_VLLM:
        assert not renamed.pop("d2t").any() and renamed.pop("t2d").all()
    ran = run(monkeypatch, path, save_head(tmp_path / "head", renamed, config), disable_radix_cache=True)
    check_guesses(ran, plain)


@one_thread()
def test_output_does_not_depend_on_the_head(model: PreTrainedModel, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that share pages, that are retracted since there are few, that reach the end of the context, that sample, and that are not
    guessed, or now and then only; with heads that have nothing in common."""
    found = []
    samplings = [
        SamplingParams(max_new_tokens=127, temperature=0.0, ignore_eos=True),
        SamplingParams(max_new_tokens=60, temperature=1.0, seed=1, ignore_eos=True),
        SamplingParams(max_new_tokens=60, temperature=0.0, frequency_penalty=0.5, ignore_eos=True),
        SamplingParams(max_new_tokens=60, temperature=0.7, top_p=0.9, seed=2, min_new_tokens=5),
        SamplingParams(max_new_tokens=91, temperature=0.0, logit_bias={5: 3.0}, ignore_eos=True),
    ]
    plain = run(monkeypatch, path, None, samplings).tokens
    few: dict[str, Any] = {"max_total_tokens": 256}
    for seed, options in enumerate(({"speculative_always": True}, few, {**few, "page_size": 8})):
        if seed:
            monkeypatch.setattr(GuessPolicy, "guesses", Fitful(seed).guesses)
        head = save_head(tmp_path / str(seed), head_tensors(model, CONFIG, seed))
        found.append(run(monkeypatch, path, head, samplings, **options).tokens)
    assert found == [found[0]] * len(found)
    assert [found[0][i] for i in (0, 2, 4)] == [plain[i] for i in (0, 2, 4)]  # at a temperature, others of the same distribution
    assert max(len(PROMPTS[i]) + len(found[0][i]) for i in range(5)) == model.config.max_position_embeddings


@pytest.mark.parametrize("broken", ["keys_values", "logits"], ids=["beside the model", "guessing"])
@one_thread()
def test_a_head_that_fails_is_given_up(
    model: PreTrainedModel, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(EagleHead, broken, fail)
    ran = run(monkeypatch, path, save_head(tmp_path / "head", head_tensors(model, CONFIG)))
    assert ran.tokens == run(monkeypatch, path, None).tokens
    assert len(ran.guesses) <= len(PROMPTS) and not any(guessed for _, guessed in ran.guesses)


@one_thread()
def test_a_trained_head_is_often_right(model: PreTrainedModel, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on the plain head's mathematics to say what the model says: were ours others, by a place or a feature, it would not know."""
    said = run(monkeypatch, path, None).tokens
    tensors = head_tensors(model, CONFIG)
    tokens = sorted({token for output in said for token in output})[: CONFIG["draft_vocab_size"]]
    tokens += [token for token in range(VOCAB) if token not in tokens][: CONFIG["draft_vocab_size"] - len(tokens)]
    tensors["d2t"] = torch.tensor(sorted(tokens)) - torch.arange(len(tokens))
    train(PlainHead(model, tensors), [prompt + output for prompt, output in zip(PROMPTS, said, strict=True)], tensors)
    ran = run(monkeypatch, path, save_head(tmp_path / "head", {name: tensor.detach() for name, tensor in tensors.items()}))
    assert ran.tokens == said
    whole = [prompt + output for prompt, output in zip(PROMPTS, said, strict=True)]
    first = [guessed[0] == next(text for text in whole if text[: len(known)] == tuple(known))[len(known)] for known, guessed in ran.guesses]
    assert sum(first) > 0.8 * len(first)
    assert len(ran.guesses) < 0.6 * sum(map(len, said))  # steps that brought several tokens


def train(plain: PlainHead, texts: Sequence[Sequence[int]], tensors: dict[str, torch.Tensor]) -> None:
    """Teach `tensors`, which are the head's, the token behind the next one."""
    weights = [tensor.requires_grad_() for name, tensor in tensors.items() if name.endswith("weight")]
    plain.tensors.update(tensors)
    numbers = {token: number for number, token in enumerate(plain.tokens.tolist())}
    optimiser = torch.optim.Adam(weights, lr=3e-3)
    with torch.no_grad():
        states = [plain.features(text[:-2]) for text in texts]
    for _ in range(60):
        optimiser.zero_grad()
        loss = torch.zeros(())
        for text, features in zip(texts, states, strict=True):
            wanted = torch.tensor([numbers.get(token, -100) for token in text[2:]])
            logits = plain.logits(plain.layer(plain.fuse(features), text[1:-1]))
            loss = loss + torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100)
        loss.backward()
        optimiser.step()
