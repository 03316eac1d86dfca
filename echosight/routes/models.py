"""`/v1/models`: the one model that answers."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from echosight.errors import InputError
from echosight.routes.auth import admit, body_of, manager_of, settings_of
from echosight.routes.openai_errors import OpenAIErrorRoute
from echosight.settings import Settings

Json = dict[str, Any]

router = APIRouter(tags=["OpenAI"], route_class=OpenAIErrorRoute)
Admitted = Annotated[None, Depends(admit)]
Chosen = Annotated[Settings, Depends(settings_of)]
Body = Annotated[bytes, Depends(body_of)]


STARTED = int(time.time())


@router.get("/v1/models")
async def models(request: Request, _: Admitted) -> Json:
    """The one model there is."""
    return {"object": "list", "data": [_model(request)]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str, _: Admitted) -> Json:
    """The model by its name."""
    known = _model(request)
    if name != known["id"]:
        message = f"The model '{name}' does not exist: this server has '{known['id']}'"
        raise InputError(message, code="model_not_found", param="model", status=404)
    return known


def _model(request: Request) -> Json:
    return {"id": manager_of(request).engine.name, "object": "model", "created": STARTED, "owned_by": "echosight"}
