"""A grammar that Ramet composed was refused: whose part of the request is to blame."""

from __future__ import annotations

import re

from ramet.errors import GrammarError
from ramet.server.openai.reply_grammar import ReplyConstraint
from ramet.server.openai.schema import SamplingFields

LINE = re.compile(r"line (\d+)(?:, )?")
OWN_WORDS = re.compile(r"^ebnf: | \(at (?:column [^)]*)?\)$")
"""What is about the composed grammar, which the request does not show."""
STRUCTURE = re.compile(r"/structures/(\d+)/schema")


def blamed(body: SamplingFields, constraint: ReplyConstraint, error: GrammarError) -> GrammarError:
    """`error` under the name of the field that caused it, with a JSON pointer into its schema where there is one."""
    found = (LINE if "ebnf" in constraint.sampling else STRUCTURE).search(error.message)
    tool = constraint.tools.get(int(found[1])) if found else None
    if tool is not None and found is not None:
        pointer = constraint.pointers.get(int(found[1]), "")
        reason = OWN_WORDS.sub("", error.message.replace(found[0], pointer, 1))
        return GrammarError(f"{tool.place}: {reason}", param=tool.place)
    if body.response_format is not None:
        nested = ".json_schema.schema" if body.response_format.type == "json_schema" else ""
        return GrammarError(error.message, param=f"response_format{nested}")
    given = [name for name in ("json_schema", "regex", "ebnf", "structural_tag") if getattr(body, name) is not None]
    return GrammarError(error.message, param=given[0] if given else error.param)
