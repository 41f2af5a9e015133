"""`Engine` on the embedded model, in its own process."""

from __future__ import annotations

import re

import pytest

from ramet.errors import ModelNotFound
from ramet.runtime.engine.engine import Engine

pytestmark = pytest.mark.model
GREEDY = {"temperature": 0, "max_new_tokens": 6}
PERSON = r'\{\s*"name":\s*"[^"]+",\s*"age":\s*\d+\s*\}'


@pytest.fixture(scope="module")
def engine():
    with Engine(max_total_tokens=4096, log_level="warning") as engine:
        yield engine


def test_knows_the_capital_of_france(engine):
    reply = engine.generate("The capital of France is", GREEDY)
    assert reply["text"].startswith(" Paris")
    again = engine.generate("The capital of France is", GREEDY)
    assert again["output_ids"] == reply["output_ids"]
    assert again["meta_info"]["cached_tokens"] > 0


def test_alone_and_together_are_equal(engine):
    prompts = ["One, two, three,", "The capital of France is", "def add(a, b):", "Once upon a time"]
    alone = [engine.generate(prompt, GREEDY)["output_ids"] for prompt in prompts]
    assert [reply["output_ids"] for reply in engine.generate(prompts, GREEDY)] == alone


def test_regex_at_high_temperature(engine):
    replies = engine.generate("A person as JSON:", {"temperature": 1.5, "max_new_tokens": 32, "regex": PERSON, "n": 2, "seed": 3})
    for reply in replies:
        finished = reply["meta_info"]["finish_reason"]["type"] == "stop"
        assert (re.fullmatch(PERSON, reply["text"]) is not None) == finished


def test_a_missing_model_is_named_here():
    with pytest.raises(ModelNotFound, match="/no/such/model"):
        Engine("/no/such/model")
