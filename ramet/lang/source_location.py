"""Where in the user's file something was asked for."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass
from pathlib import Path

_OWN_FOLDER = str(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Location:
    file: str
    line: int

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        return f'  in the program: File "{self.file}", line {self.line}' + (f"\n    {source}" if source else "")


def user_location() -> Location:
    """The innermost frame outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN_FOLDER):
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno)


def annotate(error: BaseException, location: Location) -> None:
    """Say once, in the exception itself, which line of the program it belongs to."""
    if not any("in the program:" in note for note in getattr(error, "__notes__", ())):
        error.add_note(str(location))
