"""FastAPI dependencies that routes share: settings, the manager, the request's body."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.requests import HTTPConnection

from echosight.errors import InputError
from echosight.server.manager import StreamManager
from echosight.settings import Settings


def settings_of(connection: HTTPConnection) -> Settings:
    settings: Settings = connection.app.state.settings
    return settings


def manager_of(connection: HTTPConnection) -> StreamManager:
    manager: StreamManager = connection.app.state.manager
    return manager


def ready_manager(connection: HTTPConnection) -> StreamManager:
    """The manager, once its engine can respond. Raises `EngineFull` before."""
    manager = manager_of(connection)
    manager.engine.require_ready()
    return manager


async def body_chunks(request: Request) -> AsyncGenerator[bytes, None]:
    """The request's body as it arrives. Raises `InputError` 413 as soon as it is larger than allowed."""
    limit = settings_of(request).max_body_bytes
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise InputError(f"The body is larger than {limit} bytes", code="too_large", status=413)
        yield chunk


async def body_of(request: Request) -> bytes:
    """The request's whole body. Raises as `body_chunks`."""
    return b"".join([chunk async for chunk in body_chunks(request)])


SettingsDep = Annotated[Settings, Depends(settings_of)]
ManagerDep = Annotated[StreamManager, Depends(manager_of)]
ReadyManagerDep = Annotated[StreamManager, Depends(ready_manager)]
BodyDep = Annotated[bytes, Depends(body_of)]
