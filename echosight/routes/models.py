"""`/v1/models`: the server's one model."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends

from echosight.errors import InputError
from echosight.routes.auth import require_token
from echosight.routes.dependencies import ManagerDep
from echosight.routes.openai_errors import OpenAIErrorRoute
from echosight.server.manager import StreamManager

Json = dict[str, Any]

router = APIRouter(tags=["OpenAI"], dependencies=[Depends(require_token)], route_class=OpenAIErrorRoute)

STARTED = int(time.time())


@router.get("/v1/models")
async def list_models(manager: ManagerDep) -> Json:
    """The list with the one model of this server."""
    return {"object": "list", "data": [_model(manager)]}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, manager: ManagerDep) -> Json:
    """The model by its name."""
    model = _model(manager)
    if name != model["id"]:
        message = f"The model '{name}' does not exist: this server has '{model['id']}'"
        raise InputError(message, code="model_not_found", param="model", status=404)
    return model


def _model(manager: StreamManager) -> Json:
    return {"id": manager.engine.name, "object": "model", "created": STARTED, "owned_by": "echosight"}
