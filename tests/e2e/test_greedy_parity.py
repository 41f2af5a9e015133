"""Greedy tokens equal transformers' (a part of `python -m benchmarks.greedy_parity`, small enough for every run)."""

from __future__ import annotations

import pytest

from benchmarks.greedy_parity import SETTINGS, Setting, compare, load_reference, prompts, run_engine

pytestmark = pytest.mark.model
NUM_TOKENS = 12
PART = slice(0, 50, 4)


def test_the_reference_is_of_our_prompts() -> None:
    assert [reference.prompt for reference in load_reference()] == prompts()


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[5]], ids=lambda setting: setting.name)
def test_tokens_equal_transformers(setting: Setting) -> None:
    references = load_reference()[PART]
    ties, wrong = compare(references, run_engine(setting, references, NUM_TOKENS), NUM_TOKENS)
    assert wrong == []
    assert ties <= 1
