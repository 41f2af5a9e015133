"""What a program always begins with, whatever its arguments are."""

from __future__ import annotations

from ramet.ir.module import Module
from ramet.ir.ops import Append, Const, consumed_by
from ramet.program.backend import Conversation
from ramet.program.conversation_state import ConversationState


def constant_prefix(module: Module) -> Conversation:
    """The appends of constant text at the head of the first function, up to the first thing that depends on an argument or the model."""
    entry = module.main.entry
    constants = {op.out.id: op.value for op in entry.ops if isinstance(op, Const)}
    state, held = ConversationState(), entry.args[0]
    for op in entry.ops:
        if held not in consumed_by(op):
            continue
        if not isinstance(op, Append):
            break
        known = _known_pieces(op, constants)
        state = state.with_pieces(known, [constants[value.id] for value in op.texts[: known.count("text")]])
        if len(known) < len(op.shape):
            break
        held = op.out
    return state.conversation


def _known_pieces(op: Append, constants: dict[int, object]) -> tuple[str, ...]:
    """The pieces before the first text that is not constant."""
    texts = iter(op.texts)
    for position, piece in enumerate(op.shape):
        if piece == "text" and not isinstance(constants.get(next(texts).id), str):
            return op.shape[:position]
    return op.shape
