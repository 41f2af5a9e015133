"""`ramet compile`, with the language's own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.cli import compile
from ramet.lang.compilation import language_verbs


def run(arguments: Sequence[str]) -> int:
    return compile.main(arguments, language_verbs())
