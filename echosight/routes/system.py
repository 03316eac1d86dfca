"""Health, metrics, the description of the API, and what the server offers."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

from echosight import __version__
from echosight.routes.auth import require_token
from echosight.routes.dependencies import ManagerDep
from echosight.server.manager import StreamManager
from echosight.server.metrics import CONTENT_TYPE
from echosight.settings import Settings

public_router = APIRouter(tags=["system"])
router = APIRouter(tags=["system"], dependencies=[Depends(require_token)])

_STARTED = time.monotonic()


@public_router.get("/health")
@public_router.get("/api/v1/health")
async def health(manager: ManagerDep) -> JSONResponse:
    """200 once the engine is ready; 503 while it loads, and where it could not be loaded."""
    engine = manager.engine
    state: dict[str, Any] = {
        "status": "OK" if engine.ready else "error" if engine.load_error else "loading",
        "model": engine.name,
        "sessions": len(manager.sessions),
        "capacity": manager.sessions.capacity,
        "uptime_s": round(time.monotonic() - _STARTED, 1),
        "version": __version__,
    }
    if engine.load_error:
        state["detail"] = engine.load_error.message
    elif not engine.ready and engine.loading:
        state["loading"] = engine.loading
    return JSONResponse(state, 200 if engine.ready else 503, {} if engine.ready else {"Retry-After": "2"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    """The API's description for programs."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The API's description for people. With API_TOKENS set, browsers open ``/docs?token=…``."""
    token = request.query_params.get("token")
    url = f"/openapi.json?token={quote(token, safe='')}" if token else "/openapi.json"
    return get_swagger_ui_html(openapi_url=url, title=request.app.title)


def api_info(manager: StreamManager, settings: Settings) -> dict[str, Any]:
    """Name and version of the server, what it offers, and its endpoints."""
    return {
        "name": settings.server_name,
        "version": __version__,
        "model": manager.engine.name,
        "voices": list(manager.engine.voices),
        "recording": settings.record,
        "docs": "/docs",
        "endpoints": {
            "echosight": ["/stream", "/completions", "/stop", "/feedback", "/init_options", "/ws/stream"],
            "realtime": ["/v1/realtime", "/v1/realtime/client_secrets", "/v1/realtime/calls"],
            "openai": ["/v1/audio/transcriptions", "/v1/audio/speech", "/v1/chat/completions", "/v1/models"],
            "assistant": ["/ws/audio"],
            "devices": ["/ws", "/voices", "/xiaozhi/ota/", "/xiaozhi/v1/"],
            "system": ["/health", "/metrics"],
        },
    }
