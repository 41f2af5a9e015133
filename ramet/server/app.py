"""The HTTP application: routes and middleware around one engine. Nothing lives in a module: two apps fit in one process."""

from __future__ import annotations

import time

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from ramet.runtime.config import ServerConfig
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.server import cache_routes, control, native, programs, runs
from ramet.server.auth import BearerAuth, BodyLimit
from ramet.server.control import engine_stats
from ramet.server.error_responses import install_error_handlers
from ramet.server.metrics import Metrics
from ramet.server.openai import chat, completions, model_list, parse_routes, responses
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.program_metrics import ProgramMetrics
from ramet.server.programs import ProgramRegistry
from ramet.server.runs import LiveRuns
from ramet.server.server_context import Context, ServerContext
from ramet.version import __version__

DESCRIPTION = "Native, OpenAI-compatible and control routes of a Ramet server."


def build_app(engine: GenerationEngine, config: ServerConfig) -> FastAPI:
    """An app that serves `engine`. The caller starts and closes the engine."""
    app = FastAPI(title="Ramet", version=__version__, description=DESCRIPTION)
    name = config.engine.model.served_model_name or engine.model.name
    context = app.state.context = ServerContext(engine, config, Metrics(name), started=int(time.time()))
    app.state.chat_dialect = ChatDialect.of(engine, config.engine.api)
    _add_programs(app, context)
    for router in (
        native.router,
        runs.router,
        chat.router,
        completions.router,
        responses.router,
        programs.router,
        model_list.router,
        parse_routes.router,
        cache_routes.router,
        control.router,
    ):
        app.include_router(router)
    if config.engine.log.enable_metrics:
        app.add_api_route("/metrics", _metrics, methods=["GET"], tags=["control"])
    install_error_handlers(app)
    _add_middleware(app, config)
    return app


def _add_programs(app: FastAPI, context: ServerContext) -> None:
    limits = context.config.programs
    registry = app.state.programs = ProgramRegistry(limits.max_programs)
    live = app.state.runs = LiveRuns(context, registry, limits.max_live_runs)
    live.metrics = ProgramMetrics(context.metrics.registry, live.__len__, registry.__len__)


def _add_middleware(app: FastAPI, config: ServerConfig) -> None:
    """The last one added sees a request first."""
    app.add_middleware(BodyLimit, limit=int(config.http.max_body_mb * 2**20))
    if config.http.api_key:
        app.add_middleware(BearerAuth, api_key=config.http.api_key)
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


async def _metrics(context: Context) -> Response:
    await engine_stats(context)
    return Response(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)
