"""A progress bar on stderr: tqdm where it is installed, else a line of our own."""

from __future__ import annotations

import sys
import time
from typing import Protocol


class Progress(Protocol):
    def update(self, count: int = 1) -> object: ...

    def close(self) -> object: ...


class PlainBar:
    def __init__(self, total: int) -> None:
        self._total, self._count, self._began = total, 0, time.monotonic()
        self._draw()

    def update(self, count: int = 1) -> None:
        self._count += count
        self._draw()

    def close(self) -> None:
        sys.stderr.write("\n")

    def _draw(self) -> None:
        filled = "█" * (30 * self._count // max(1, self._total))
        rate = self._count / max(1e-9, time.monotonic() - self._began)
        sys.stderr.write(f"\r{filled:<30} {self._count}/{self._total} [{rate:.1f}/s]")
        sys.stderr.flush()


class NoBar:
    def update(self, count: int = 1) -> None:
        pass

    def close(self) -> None:
        pass


def progress_bar(total: int, *, shown: bool) -> Progress:
    if not shown:
        return NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        return PlainBar(total)
    return tqdm(total=total)
