"""Every failure becomes one JSON shape, OpenAI's: `{"error": {"message", "type", "param", "code"}}` with the honest status."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ramet.errors import InternalError, InvalidRequest, QueueFull, RametError, UserError
from ramet.log import get_logger
from ramet.server.unknown_fields import body_model, unknown_fields

logger = get_logger(__name__)

OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "input_ids": "prompt", "text": "prompt"}
"""A native field's name → what the OpenAI routes call it."""

NATIVE_LENGTHS = re.compile(r"\b(max|min)_new_tokens\b")

KINDS = {
    "str": ("a string", "strings"),
    "int": ("an integer", "integers"),
    "float": ("a number", "numbers"),
    "bool": ("true or false", "booleans"),
    "dict": ("an object", "objects"),
}
"""What the branches of a union are called, one of them and several."""

REASONS = {
    "missing": "is missing",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}
"""Pydantic's kind of complaint → what it is about, where its own words are about Python."""

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


def invalid_request_of(errors: Sequence[Any], body: type[BaseModel] | None) -> InvalidRequest:
    """Pydantic's complaints about a `body` as one error. Unknown fields are all named; of others the first is, and the rest counted."""
    if errors[0]["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {errors[0]['ctx']['error']} at character {errors[0]['loc'][-1]}")
    if not any(_path(error) for error in errors):
        return InvalidRequest("the body must be a JSON object with the fields that /docs lists")
    unknown = {_path(error): error["loc"] for error in errors if error["type"] == "extra_forbidden"}
    if unknown:
        return InvalidRequest(unknown_fields(unknown, body), param=next(iter(unknown)))
    reasons: dict[str, str] = {}
    for error in errors:
        reasons.setdefault(_path(error), REASONS.get(error["type"], str(error["msg"]).removeprefix("Value error, ")))
    path, reason = next(iter(reasons.items()))
    kinds = [step for error in errors if _path(error) == path for step in error["loc"] if _is_kind(step)]
    if kinds:
        reason = "expected " + " or ".join(kind_in_words(kind) for kind in dict.fromkeys(kinds))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return InvalidRequest(f"{path}: {reason}{more}" if path else f"{reason}{more}", param=path or None)


def kind_in_words(kind: str, *, many: bool = False) -> str:
    """Pydantic's label of a union's branch: `list[str]` → "a list of strings"."""
    if kind.startswith("list["):
        return ("lists of " if many else "a list of ") + kind_in_words(kind[5:-1], many=True)
    one, several = KINDS["dict" if kind.startswith("dict[") else kind]
    return several if many else one


def _path(error: Any) -> str:
    """Where the complaint is, up to a field whose type is a union: what its branches say of it is said together."""
    steps = itertools.takewhile(lambda step: not _is_kind(step), (step for step in error["loc"] if step not in ("body", "query")))
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _is_kind(step: str | int) -> bool:
    return isinstance(step, str) and (step in KINDS or step.startswith(("list[", "dict[")))


async def _on_ramet_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RametError)
    if request.url.path.startswith("/v1/"):
        error.param = OPENAI_NAMES.get(error.param or "", error.param)
        error.message = NATIVE_LENGTHS.sub(lambda found: OPENAI_NAMES[found[0]], error.message)
    if error.status == 500:
        logger.error("%s %s failed: %s", request.method, request.url.path, error.message, exc_info=error)
    return error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    sent_as = request.headers.get("content-type", "").partition(";")[0]
    if sent_as and not sent_as.endswith("json") and not any(_path(complaint) for complaint in error.errors()):
        message = f"the body came as {sent_as}, and only JSON is read: send it with the header 'Content-Type: application/json'"
        return error_response(InvalidRequest(message))
    return error_response(invalid_request_of(error.errors(), body_model(request.scope.get("endpoint"))))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    known = {404: _no_route(request), 405: f"{request.method} is not allowed on {request.url.path}"}
    wrapped = UserError(known.get(error.status_code, str(error.detail)))
    wrapped.status, wrapped.code = error.status_code, {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(wrapped)


def _no_route(request: Request) -> str:
    """A client that was given the address without its /v1, or with two, is told the route."""
    path = request.url.path
    routes: list[str] = sorted(request.app.openapi()["paths"])
    near = [route for route in routes if route.endswith(path)] or get_close_matches(path, routes, n=1, cutoff=0.75)
    return f"no route {path}; " + (f"did you mean {near[0]}?" if near and path != "/" else "/docs lists them")


async def _on_crash(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s crashed", request.method, request.url.path, exc_info=error)
    return error_response(InternalError("internal error; the server's log has the traceback"))
