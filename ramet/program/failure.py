"""A program that failed while it ran: what, and at which line of the user's code."""

from __future__ import annotations

from ramet.errors import RametError, UserError
from ramet.ir.module import Module
from ramet.ir.types import Location


class ProgramFailed(UserError):
    """`cause_type` is the name of Python's own error (KeyError, ValueError…), `location` the op's place, `code` and `status` those of
    the cause where that is one of Ramet's errors."""

    code = "program_failed"

    def __init__(self, module: Module, location: Location, cause: BaseException) -> None:
        super().__init__(f"{module.show(location)}\n{type(cause).__name__}: {_text(cause)}")
        self.location = location
        self.cause_type = type(cause).__name__
        if isinstance(cause, RametError):
            self.status, self.kind, self.code = cause.status, cause.kind, cause.code or self.code


def _text(cause: BaseException) -> str:
    if isinstance(cause, RametError):
        return cause.message
    return str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
