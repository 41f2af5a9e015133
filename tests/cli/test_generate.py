"""What `ramet generate` asks of the engine."""

from __future__ import annotations

import pytest

from ramet.cli.generate import _generation, parse
from ramet.errors import ConfigError
from tests.server.scripted_engine import ScriptedEngine


@pytest.mark.parametrize(
    ("words", "defaults", "temperature"),
    [([], {}, 0.0), ([], {"temperature": 0.6}, 0.6), (["--temperature", "0.8"], {"temperature": 0.6}, 0.8)],
)
def test_where_nobody_says_otherwise_the_answer_is_the_likeliest(words: list[str], defaults: dict[str, float], temperature: float) -> None:
    prompt, raw, sampling, _ = parse(["Hi", *words])
    generation = _generation(ScriptedEngine(generation_defaults=defaults), prompt, raw, sampling)
    assert (generation.sampling.temperature, generation.sampling.greedy) == (temperature, temperature == 0.0)
    assert ScriptedEngine.tokenizer.decode(generation.input_ids or ()) == "[user]Hi[/user][assistant]"


@pytest.mark.parametrize(("text", "complaint"), [("{", "--sampling is not JSON: "), ("[1]", "--sampling must be a JSON object")])
def test_further_sampling_parameters_are_a_json_object(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(["--sampling", text, "hi"])
