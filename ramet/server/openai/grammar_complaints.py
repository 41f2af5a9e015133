"""A grammar that Ramet composed was refused: whose part of the request is to blame."""

from __future__ import annotations

import json
import re
import uuid

from ramet.errors import GrammarError
from ramet.runtime.request import FinishKind, Generation, SamplingParams
from ramet.server.openai.reply_grammar import ReplyConstraint
from ramet.server.openai.schema import SamplingFields
from ramet.server.openai.tool_use import CallableTool
from ramet.server.server_context import ServerContext

LINE = re.compile(r"line (\d+)")
OWN_WORDS = re.compile(r"^ebnf: | \(at line [^)]*\)$")
"""What is about the composed grammar, which the request does not show."""
STRUCTURE = re.compile(r"/structures/(\d+)/schema")


async def blamed(context: ServerContext, body: SamplingFields, constraint: ReplyConstraint, error: GrammarError) -> GrammarError:
    """`error` under the name of the field that caused it, with a JSON pointer into its schema where there is one."""
    found = (LINE if "ebnf" in constraint.sampling else STRUCTURE).search(error.message)
    tool = constraint.tools.get(int(found[1])) if found else None
    if tool is not None and found is not None:
        reason = await _complaint_about(context, tool) if "ebnf" in constraint.sampling else error.message.replace(found[0], "")
        return GrammarError(f"{tool.place}: {reason or OWN_WORDS.sub('', error.message)}", param=tool.place)
    if body.response_format is not None:
        nested = ".json_schema.schema" if body.response_format.type == "json_schema" else ""
        return GrammarError(error.message, param=f"response_format{nested}")
    given = [name for name in ("json_schema", "regex", "ebnf", "structural_tag") if getattr(body, name) is not None]
    return GrammarError(error.message, param=given[0] if given else error.param)


async def _complaint_about(context: ServerContext, tool: CallableTool) -> str | None:
    """Compiled by itself, a schema's complaint says at which place; it costs a token only if nothing is wrong with it."""
    sampling = SamplingParams(max_new_tokens=1, json_schema=json.dumps(tool.schema))
    request_id = f"check-{uuid.uuid4().hex}"
    try:
        whole = await context.engine.complete(Generation(request_id=request_id, text="{", sampling=sampling))
    except GrammarError as error:
        return error.message
    finish = whole.finish
    return finish.message if finish and finish.kind is FinishKind.ERROR and finish.code == GrammarError.code else None
