"""Fields of structural tags, read or refused with their JSON pointer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ramet.errors import GrammarError
from ramet.grammar.schema_document import MAX_COUNT
from ramet.grammar.schema_resources import escape


def check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            refuse(f"{key!r} is not supported; known: {', '.join(known)}", f"{where}/{escape(key)}")


def text_of(given: Mapping[str, Any], key: str, where: str) -> str:
    value = given.get(key)
    return value if isinstance(value, str) else refuse("must be given as text", f"{where}/{key}")


def texts_of(given: Mapping[str, Any], key: str, where: str) -> list[str]:
    """Not empty, where the field is given."""
    value = [] if given.get(key) is None else given[key]
    if not isinstance(value, list):
        refuse("must be a list of texts", f"{where}/{key}")
    for index, text in enumerate(value):
        if not isinstance(text, str) or not text:
            refuse("must be text, and not empty", f"{where}/{key}/{index}")
    return value


def flag_of(given: Mapping[str, Any], key: str, where: str, default: bool = False) -> bool:
    value = default if given.get(key) is None else given[key]
    return value if isinstance(value, bool) else refuse("must be true or false", f"{where}/{key}")


def count_of(given: Mapping[str, Any], key: str, where: str, least: int = 0) -> int:
    value = given.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_COUNT:
        refuse(f"must be a whole number from {least} to {MAX_COUNT}", f"{where}/{key}")
    return value


def list_of(given: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = given.get(key)
    return value if isinstance(value, list) and value else refuse("must be a list, and not empty", f"{where}/{key}")


def within(error: GrammarError, where: str) -> GrammarError:
    """The same complaint about a part of the structural tag that stands at `where`."""
    inner = error.where if error.where and error.where.startswith("/") else ""
    place = f", {error.where}" if error.where and not inner and error.where != "#" else ""
    return GrammarError(error.message.removesuffix(f" (at {error.where})"), where=where + inner + place, param="structural_tag")


def refuse(what: str, where: str) -> NoReturn:
    raise GrammarError(f"structural_tag: {what}", where=where or "#", param="structural_tag")
