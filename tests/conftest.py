"""How property tests draw examples: the same in every run, so that a commit fails only by what it changes; others by `make search`. How
long one takes is never held against it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", untimed, derandomize=True)
settings.register_profile("search", untimed, derandomize=False)
settings.load_profile("fixed")
