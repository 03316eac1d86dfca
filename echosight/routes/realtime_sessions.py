"""Ephemeral keys over HTTP, and the sessions that they open."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends, Request

from echosight.conversation import new_id
from echosight.errors import InputError, WireError
from echosight.routes.auth import require_token
from echosight.routes.client_secrets import ClientSecret, client_secrets_of
from echosight.routes.dependencies import body_of, manager_of, settings_of
from echosight.routes.openai_errors import OpenAIErrorRoute
from echosight.routes.realtime import SESSION_S
from echosight.wire.fields import read_json
from echosight.wire.realtime import RealtimeWire, SessionTemplate

router = APIRouter(tags=["Realtime"], dependencies=[Depends(require_token)], route_class=OpenAIErrorRoute)


@router.post("/v1/realtime/client_secrets")
async def client_secrets(request: Request) -> dict[str, Any]:
    """An ephemeral key for a browser, and the session that it will open."""
    body = await _json_object(request)
    session = {} if body.get("session") is None else body["session"]
    if not isinstance(session, dict):
        raise WireError("session must be an object", code="invalid_type", param="session")
    seconds = _lifetime_s(body, "expires_after")
    secret, public_session = _issue(request, {"type": "realtime", **session}, seconds, flat=False)
    return {"value": secret.value, "expires_at": secret.expires_at, "session": public_session}


@router.post("/v1/realtime/sessions")
@router.post("/v1/realtime/transcription_sessions")
async def sessions(request: Request) -> dict[str, Any]:
    """The same for beta clients: a flat session that contains its key."""
    transcribes = request.url.path.endswith("transcription_sessions")
    body = await _json_object(request)
    lifetime = body.pop("client_secret", None)
    seconds = _lifetime_s(lifetime, "expires_after") if isinstance(lifetime, dict) else 60
    secret, public_session = _issue(request, body, seconds, flat=True, transcribes=transcribes)
    return public_session | {"client_secret": {"value": secret.value, "expires_at": secret.expires_at}}


def _issue(
    request: Request, session: dict[str, Any], seconds: int, *, flat: bool, transcribes: bool = False
) -> tuple[ClientSecret, dict[str, Any]]:
    """A key, and the session that it opens as clients see it. Raises `WireError` where the session is invalid."""
    manager, settings = manager_of(request), settings_of(request)
    model = session.get("model")
    template = SessionTemplate(
        model=model if isinstance(model, str) else manager.engine.name,
        voices=manager.engine.voices,
        expires_at=int(time.time()) + SESSION_S,
        transcription_only=transcribes,
    )
    wire = RealtimeWire(template, settings.session_options(), beta=flat)
    wire.configure(session, flat=flat)
    secret = client_secrets_of(request).issue(seconds, session, flat, transcribes)
    return secret, {**wire.session_json(wire.opening_options()), "id": new_id("sess")}


async def _json_object(request: Request) -> dict[str, Any]:
    data = await body_of(request)
    body = read_json(data) if data else {}
    if not isinstance(body, dict):
        raise WireError("The body must be an object", code="invalid_type")
    return body


def _lifetime_s(body: dict[str, Any], name: str) -> int:
    """The key's lifetime in seconds, from the object `name`. Raises `InputError`."""
    lifetime = {} if body.get(name) is None else body[name]
    if isinstance(lifetime, dict) and lifetime.get("anchor", "created_at") != "created_at":
        raise InputError(f"{name}.anchor must be 'created_at'", param=f"{name}.anchor")
    seconds = lifetime.get("seconds", 600) if isinstance(lifetime, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 10 <= seconds <= 7_200:
        raise InputError(f"{name}.seconds must be between 10 and 7200", param=f"{name}.seconds")
    return seconds
