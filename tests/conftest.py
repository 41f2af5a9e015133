"""How property tests draw examples: the same in every run, so that a commit fails only by what it changes; others by `make search`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("fixed")
