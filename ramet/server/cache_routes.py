"""The prefix cache made visible: its tree, its optimality, and why a request missed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response

from ramet.errors import RequestNotFound
from ramet.runtime.engine.cache_report import explain, report
from ramet.runtime.engine.tree_picture import tree_picture
from ramet.server.openai.reply_schema import ERROR_REPLIES
from ramet.server.server_context import Context, ServerContext

router = APIRouter(tags=["cache"])

NodeLimit = Annotated[int, Query(ge=0, le=10_000, description="show the largest parts of the tree, at most so many")]


@router.get("/cache", responses=ERROR_REPLIES)
async def cache(context: Context, nodes: NodeLimit = 200) -> dict[str, Any]:
    """Pool, optimality report (prompt tokens computed against the edges of the tree of all prompts), tree, and where prompts part."""
    return await _report(context, nodes)


@router.get("/cache/picture", responses=ERROR_REPLIES, response_class=Response)
async def picture(context: Context, nodes: NodeLimit = 400) -> Response:
    """The tree as SVG: width is tokens, depth is position, colour is use."""
    return Response(tree_picture(await _report(context, nodes)), media_type="image/svg+xml")


@router.get("/cache/explain", responses=ERROR_REPLIES)
async def explain_miss(rid: str, context: Context) -> dict[str, Any]:
    """How much of this request's prompt was cached, and why not more: the nearest prompt, the first place where they differ, advice."""
    lookup = await context.engine.explain_cache(rid)
    if lookup is None:
        raise RequestNotFound(f"no request {rid[:80]!r} among the last 1024 that were scheduled; rid is exact", param="rid")
    return explain(lookup, lambda ids: _text(context, ids))


async def _report(context: ServerContext, nodes: int) -> dict[str, Any]:
    return report(await context.engine.cache_view(nodes), lambda ids: _text(context, ids))


def _text(context: ServerContext, ids: Any) -> str:
    return context.engine.tokenizer.decode(ids, skip_special_tokens=False)
