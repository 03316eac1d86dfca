"""The application: settings, engine, StreamManager and the routes of every protocol, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse

from echosight import __version__
from echosight.engines import Engine
from echosight.engines.registry import load
from echosight.errors import EchoSightError, EngineFailure, EngineFull, InputError
from echosight.routes import (
    assistant,
    audio,
    chat,
    devices,
    handshake,
    models,
    realtime,
    realtime_sessions,
    system,
    vision,
    web,
    webrtc,
)
from echosight.routes import echosight as echosight_routes
from echosight.routes.client_secrets import ClientSecretStore
from echosight.routes.errors import echosight_error_response
from echosight.server.frames import FrameAnalyst
from echosight.server.manager import StreamManager
from echosight.server.metrics import Metrics
from echosight.server.recording import Recorder
from echosight.settings import Settings
from echosight.turns.vad import BatchedVad


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> FastAPI:
    """The whole application; it shares nothing with other applications in the process.

    Without `settings` it takes them from the environment and `.env`, without `engine` the one that they choose.
    Raises `SetupError`.
    """
    settings = settings or Settings.from_environment()
    engine = engine or load(settings)
    metrics = Metrics(__version__, engine.name)
    recorder = Recorder(
        settings.log_dir / str(settings.port),
        record=settings.record,
        max_bytes=settings.max_record_mb << 20,
        max_age_s=settings.max_record_days * 86_400,
    )
    manager = StreamManager(engine, settings, BatchedVad(), metrics, recorder)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with manager.running():
            yield

    # FastAPI would serve the API's description to everybody; `system` serves it to clients with a token.
    app = FastAPI(title=settings.server_name, version=__version__, lifespan=lifespan, openapi_url=None)
    app.state.settings, app.state.manager, app.state.metrics = settings, manager, metrics
    app.state.frames = FrameAnalyst(manager)
    app.state.client_secrets = ClientSecretStore()
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_exception_handler(InputError, on_error)
    app.add_exception_handler(EngineFull, on_error)
    app.add_exception_handler(EngineFailure, on_error)
    _include_routers(app)
    return app


def _include_routers(app: FastAPI) -> None:
    app.include_router(system.public_router)
    app.include_router(system.router)
    app.include_router(web.router)
    app.include_router(echosight_routes.router)
    app.include_router(echosight_routes.router, prefix="/api/v1", include_in_schema=False)
    app.include_router(echosight_routes.sockets)
    app.include_router(realtime_sessions.router)
    app.include_router(realtime.sockets)
    app.include_router(webrtc.router)
    app.include_router(chat.router)
    app.include_router(audio.router)
    app.include_router(models.router)
    app.include_router(assistant.sockets)
    app.include_router(devices.router)
    app.include_router(devices.sockets)
    app.include_router(vision.router)
    app.include_router(vision.router, prefix="/api/v1", include_in_schema=False)
    app.include_router(handshake.unknown_sockets)


async def on_error(_: Request, error: Exception) -> JSONResponse:
    """A mistake of the client, no room for its request, or a failure of the engine."""
    assert isinstance(error, EchoSightError)
    return echosight_error_response(error)
