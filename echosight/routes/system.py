"""What the server says about itself."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

from echosight import __version__
from echosight.routes.auth import admit, manager_of
from echosight.server.manager import StreamManager
from echosight.server.metrics import CONTENT_TYPE
from echosight.settings import Settings

open_router = APIRouter(tags=["system"])
router = APIRouter(tags=["system"], dependencies=[Depends(admit)])

Manager = Annotated[StreamManager, Depends(manager_of)]

_STARTED = time.monotonic()


@open_router.get("/health")
@open_router.get("/api/v1/health")
async def health(manager: Manager) -> JSONResponse:
    """200 once answers can be made; 503 while the engine loads or when it cannot."""
    state: dict[str, Any] = {
        "status": "OK" if manager.ready else "error" if manager.failed else "loading",
        "model": manager.engine.name,
        "sessions": manager.sessions,
        "capacity": manager.capacity,
        "uptime_s": round(time.monotonic() - _STARTED, 1),
        "version": __version__,
    }
    if manager.failed:
        state["detail"] = manager.failed.message
    elif not manager.ready and (loading := str(getattr(manager.engine, "loading", ""))):
        state["loading"] = loading
    return JSONResponse(state, 200 if manager.ready else 503, {} if manager.ready else {"Retry-After": "2"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    """The API for programs."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The API for people. Browsers open ``/docs?token=…`` where tokens are asked for."""
    token = request.query_params.get("token")
    url = f"/openapi.json?token={quote(token, safe='')}" if token else "/openapi.json"
    return get_swagger_ui_html(openapi_url=url, title=request.app.title)


def about(manager: StreamManager, settings: Settings) -> dict[str, Any]:
    """What this is, what it offers, and where its doors are."""
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
            "system": ["/health", "/metrics"],
        },
    }
