"""GET /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ramet.server.openai.reply_schema import ERROR_REPLIES, ModelCard, ModelList
from ramet.server.server_context import Context, ServerContext

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models", response_model=ModelList)
async def list_models(context: Context) -> dict[str, Any]:
    return {"object": "list", "data": [_card(context)]}


@router.get("/v1/models/{name:path}", response_model=ModelCard, responses=ERROR_REPLIES)
async def retrieve_model(name: str, context: Context) -> dict[str, Any]:
    context.check_model(name)
    return _card(context)


def _card(context: ServerContext) -> dict[str, Any]:
    return {
        "id": context.model_name,
        "object": "model",
        "created": context.started,
        "owned_by": "ramet",
        "root": context.engine.model.name,
        "max_model_len": context.engine.model.context_len,
    }
