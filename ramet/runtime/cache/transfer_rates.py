"""Whether KV is fetched or computed again: what both have taken of late decides."""

from __future__ import annotations

_DECAY = 0.9
_FEW_TOKENS = 16
"""Steps with fewer prompt tokens say more about decoding than about prompts."""


class Rate:
    """Seconds per unit over the last dozen observations, the large ones weighing more; None before the first."""

    def __init__(self) -> None:
        self._units = self._seconds = 0.0

    @property
    def seconds_per_unit(self) -> float | None:
        return self._seconds / self._units if self._units else None

    def observe(self, units: float, seconds: float) -> None:
        self._units = _DECAY * self._units + units
        self._seconds = _DECAY * self._seconds + seconds


class TransferRates:
    """`host_bytes_per_second` was measured when the memory was made; files and prompts are measured as they come."""

    def __init__(self, host_bytes_per_second: float) -> None:
        self._host_bytes_per_second = host_bytes_per_second
        self._disk = Rate()
        self._prompts = Rate()

    def observe_step(self, prompt_tokens: int, seconds: float) -> None:
        if prompt_tokens >= _FEW_TOKENS and seconds > 0.0:
            self._prompts.observe(prompt_tokens, seconds)

    def observe_read(self, num_bytes: int, seconds: float) -> None:
        self._disk.observe(num_bytes, seconds)

    @property
    def prompt_tokens_per_second(self) -> float:
        """0.0 until known."""
        rate = self._prompts.seconds_per_unit
        return 1.0 / rate if rate else 0.0

    @property
    def disk_bytes_per_second(self) -> float:
        """0.0 until known."""
        rate = self._disk.seconds_per_unit
        return 1.0 / rate if rate else 0.0

    def recomputing(self, num_tokens: int) -> float | None:
        """Seconds; None: no prompt was computed yet."""
        rate = self._prompts.seconds_per_unit
        return None if rate is None else num_tokens * rate

    def host_pays(self, num_bytes: int, num_tokens: int) -> bool:
        recomputing = self.recomputing(num_tokens)
        return recomputing is None or num_bytes / self._host_bytes_per_second < recomputing

    def disk_pays(self, num_bytes: int, bytes_ahead: int, num_tokens: int) -> bool:
        """`bytes_ahead` are read first. What was never measured is tried: that measures it."""
        rate, recomputing = self._disk.seconds_per_unit, self.recomputing(num_tokens)
        if rate is None or recomputing is None:
            return True
        return (bytes_ahead + num_bytes) * rate + num_bytes / self._host_bytes_per_second < recomputing
