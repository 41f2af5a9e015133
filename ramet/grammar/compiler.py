"""The choice of constraint engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ramet.errors import ConfigError, Unsupported
from ramet.grammar.matcher import CompiledGrammar, GrammarCompiler, Vocabulary


def create_grammar_compiler(backend: str, vocabulary: Vocabulary, encode: Callable[[str], Sequence[int]] | None = None) -> GrammarCompiler:
    """`backend`: the option grammar_backend. `encode`: text in the middle of a generation → ids, as the model's tokenizer writes it
    (`HfTokenizer.encode_continuation`); needed for `Matcher.forced_tokens`, which returns nothing without it."""
    if backend == "llguidance":
        from ramet.grammar.llguidance_compiler import LlguidanceCompiler

        return LlguidanceCompiler(vocabulary, encode)
    if backend == "none":
        return RefusingCompiler()
    raise ConfigError(f"grammar_backend={backend!r} is not one of llguidance, none", param="grammar_backend")


class RefusingCompiler:
    """The backend `none`."""

    def compile(self, kind: str, source: str) -> CompiledGrammar:
        raise Unsupported(f"{kind}: this server runs with --grammar-backend none; start it with llguidance", param=kind)
