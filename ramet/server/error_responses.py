"""Every failure becomes one JSON shape, OpenAI's: `{"error": {"message", "type", "param", "code"}}` with the honest status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ramet.errors import InternalError, InvalidRequest, QueueFull, RametError, UserError
from ramet.log import get_logger

logger = get_logger(__name__)

OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "input_ids": "prompt", "text": "prompt"}
"""A native field's name → what the OpenAI routes call it."""

UNAVAILABLE_RETRY_SECONDS = 1.0


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RametError, _on_ramet_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_crash)


def error_body(error: RametError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: RametError) -> JSONResponse:
    headers = {}
    if error.status == 503:
        retry_after = error.retry_after if isinstance(error, QueueFull) else UNAVAILABLE_RETRY_SECONDS
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


def invalid_request_of(errors: Sequence[Any]) -> InvalidRequest:
    """Pydantic's list of complaints as one error that names the first field and counts the others."""
    first = errors[0]
    steps = [step for step in first["loc"] if step not in ("body", "query")]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    reason = "this field is not known" if first["type"] == "extra_forbidden" else str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InvalidRequest(f"{path}: {reason}{more}" if path else f"{reason}{more}", param=path or None)


async def _on_ramet_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RametError)
    if request.url.path.startswith("/v1/"):
        error.param = OPENAI_NAMES.get(error.param or "", error.param)
    if error.status == 500:
        logger.error("%s %s failed: %s", request.method, request.url.path, error.message, exc_info=error)
    return error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid_request_of(error.errors()))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    known = {404: f"no route {request.url.path}; /docs lists them", 405: f"{request.method} is not allowed on {request.url.path}"}
    wrapped = UserError(known.get(error.status_code, str(error.detail)))
    wrapped.status, wrapped.code = error.status_code, {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(wrapped)


async def _on_crash(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s crashed", request.method, request.url.path, exc_info=error)
    return error_response(InternalError("internal error; the server's log has the traceback"))
