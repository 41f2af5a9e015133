"""The choice of constraint engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ramet.errors import ConfigError, Unsupported
from ramet.grammar.matcher import CompiledGrammar, GrammarCompiler, MaskFiller, SerialMasks, Vocabulary
from ramet.grammar.parallel_masks import ParallelMasks, default_threads


def create_grammar_compiler(
    backend: str,
    vocabulary: Vocabulary,
    encode: Callable[[str], Sequence[int]] | None = None,
    *,
    json_whitespace: str = "",
    bounded: bool = True,
    isolated: bool = False,
) -> GrammarCompiler:
    """`backend`: the option grammar_backend. `encode`: text in the middle of a generation → ids, as the model's tokenizer writes it
    (`HfTokenizer.encode_continuation`); needed for `Matcher.forced_tokens`, which returns nothing without it.
    `json_whitespace`: a regex of what may stand between JSON tokens. `bounded`: matchers with max_tokens close their text in time.
    `isolated`: constraints are read and tried in a process that is killed when it takes too long; for sources from the network."""
    if backend == "llguidance":
        from ramet.grammar.llguidance_compiler import LlguidanceCompiler

        if not isolated:
            return LlguidanceCompiler(vocabulary, encode, json_whitespace, bounded)
        from ramet.grammar.lowering_process import LoweringProcesses

        return LlguidanceCompiler(vocabulary, encode, json_whitespace, bounded, LoweringProcesses(ahead=True))
    if backend == "none":
        return RefusingCompiler()
    raise ConfigError(f"grammar_backend={backend!r} is not one of llguidance, none", param="grammar_backend")


def create_mask_filler(backend: str, num_threads: int = 0) -> MaskFiller:
    """For matchers of this backend. `num_threads`: 0, by the number of cores; 1, one row after the other."""
    num_threads = num_threads or default_threads()
    return ParallelMasks(num_threads) if backend == "llguidance" and num_threads > 1 else SerialMasks()


class RefusingCompiler:
    """The backend `none`."""

    def compile(self, kind: str, source: str) -> CompiledGrammar:
        raise Unsupported(f"{kind}: this server runs with --grammar-backend none; start it with llguidance", param=kind)

    def close(self) -> None:
        """It started nothing."""
