"""The application: settings, engine, StreamManager and the routes of every protocol, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse

from echosight import __version__
from echosight.engines.registry import load
from echosight.errors import EngineFull, InputError
from echosight.routes import audio, chat, models, realtime, realtime_sessions, system, web, webrtc
from echosight.routes import echosight as echosight_routes
from echosight.routes.realtime import RealtimeState
from echosight.server.manager import StreamManager
from echosight.server.metrics import Metrics
from echosight.server.recording import Recorder
from echosight.settings import Settings
from echosight.turns.vad import BatchedVad


def create_app(settings: Settings) -> FastAPI:
    """The application with everything in it; nothing of it is global. Raises `SetupError`."""
    engine = load(settings)
    metrics = Metrics(__version__, engine.name)
    journal = Recorder(
        settings.log_dir / str(settings.port),
        record=settings.record,
        max_bytes=settings.max_record_mb << 20,
        max_age_s=settings.max_record_days * 86_400,
    )
    manager = StreamManager(engine, settings, BatchedVad(), metrics, journal)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with manager.running():
            yield

    # The description of the API is for callers with a token, as all else: `system` serves it.
    app = FastAPI(title=settings.server_name, version=__version__, lifespan=lifespan, openapi_url=None)
    app.state.settings, app.state.manager, app.state.metrics = settings, manager, metrics
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_exception_handler(InputError, refuse)
    app.add_exception_handler(EngineFull, defer)
    app.include_router(system.open_router)
    app.include_router(system.router)
    app.include_router(web.router)
    app.include_router(echosight_routes.router)
    app.include_router(echosight_routes.router, prefix="/api/v1", include_in_schema=False)
    app.include_router(echosight_routes.sockets)
    app.state.realtime = RealtimeState()
    app.include_router(realtime_sessions.router)
    app.include_router(realtime.sockets)
    app.include_router(webrtc.router)
    app.include_router(chat.router)
    app.include_router(audio.router)
    app.include_router(models.router)
    return app


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """What the caller did wrong, with its status."""
    assert isinstance(error, InputError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse({"detail": error.message, "code": error.code, "param": error.param}, error.status, headers)


async def defer(_: Request, error: Exception) -> JSONResponse:
    """No conversation can be added now."""
    assert isinstance(error, EngineFull)
    return JSONResponse(
        {"detail": error.message, "code": error.code}, 503, headers={"Retry-After": str(error.retry_after)}
    )
