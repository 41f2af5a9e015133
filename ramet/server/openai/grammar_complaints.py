"""A grammar that Ramet composed was refused: whose part of the request is to blame."""

from __future__ import annotations

import re

from ramet.errors import GrammarError
from ramet.grammar.regex_dialect import translate
from ramet.server.openai.reply_grammar import ReplyConstraint, answer_rules
from ramet.server.openai.schema import SamplingFields

LINE = re.compile(r"line (\d+)(?:, )?")
PARSER_LINE = re.compile(r"\b(\d+)(?=\(\d+\): )")
"""The grammar engine's own way to say it: line(column)."""
OWN_WORDS = re.compile(r"^ebnf: | \(at (?:column [^)]*)?\)$")
"""What is about the composed grammar, which the request does not show."""
IN_REGEX = re.compile(r"ebnf: in /.*/: (.*) \(at .*, char (\d+)\)")
"""The complaint about a regex that stands in the grammar, and its place there."""
STRUCTURE = re.compile(r"/structures/(\d+)/schema")


def blamed(body: SamplingFields, constraint: ReplyConstraint, error: GrammarError) -> GrammarError:
    """`error` under the name of the field that caused it, with a JSON pointer into its schema where there is one."""
    found = (LINE if "ebnf" in constraint.sampling else STRUCTURE).search(error.message)
    tool = constraint.tools.get(int(found[1])) if found else None
    if tool is not None and found is not None:
        pointer = constraint.pointers.get(int(found[1]), "")
        reason = OWN_WORDS.sub("", error.message.replace(found[0], pointer, 1))
        return GrammarError(f"{tool.place}: {reason}", param=tool.place)
    message = _of_the_answer(body, constraint, error.message)
    if body.response_format is not None:
        nested = ".json_schema.schema" if body.response_format.type == "json_schema" else ""
        return GrammarError(message, param=f"response_format{nested}")
    given = [name for name in ("json_schema", "regex", "ebnf", "structural_tag") if getattr(body, name) is not None]
    return GrammarError(message, param=given[0] if given else error.param)


def _of_the_answer(body: SamplingFields, constraint: ReplyConstraint, message: str) -> str:
    """Lines of the composed grammar as lines of the request's own, or, where the request has a schema or a regex, not at all."""
    composed, found = constraint.sampling.get("ebnf"), LINE.search(message) or PARSER_LINE.search(message)
    if composed is None or composed == body.ebnf:
        return message
    if body.regex is not None:
        return _of_the_regex(body.regex, message)
    if found is None or body.ebnf is None:
        return OWN_WORDS.sub("", message if found is None else message.replace(found[0], "", 1))
    num_before = composed.splitlines().index(answer_rules({"ebnf": body.ebnf})[0])
    return message.replace(found[0], found[0].replace(found[1], str(int(found[1]) - num_before)), 1)


def _of_the_regex(regex: str, message: str) -> str:
    """As it is of the regex where nothing stands in front of it."""
    if found := IN_REGEX.fullmatch(message):
        return f"regex: {found[1]} (at char {translate(regex).place(int(found[2]))})"
    return f"regex: {OWN_WORDS.sub('', message)}"
