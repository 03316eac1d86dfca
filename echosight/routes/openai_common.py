"""Shared by the plain OpenAI endpoints."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from echosight.conversation import Conversation, UserTurn
from echosight.errors import EngineFull, InputError
from echosight.media import Transcript
from echosight.routes.auth import manager_of
from echosight.routes.openai_errors import fault
from echosight.server.manager import StreamManager

Json = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


def ready(request: Request) -> StreamManager:
    """The manager, once its engine can answer. Raises `EngineFull` before."""
    manager = manager_of(request)
    if not manager.ready:
        raise EngineFull("The engine is loading", retry_after=2)
    return manager


async def transcribe(manager: StreamManager, turn: UserTurn, language: str | None) -> Transcript | None:
    conversation = Conversation(language=language)
    try:
        return await manager.engine.finalize_transcript(conversation, turn) if turn.duration_ms else Transcript("")
    finally:
        await manager.engine.release(conversation.id)


def checked(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        param, message = fault(error.errors(include_url=False, include_input=False, include_context=False))
        raise InputError(message, code="invalid_value", param=param) from error
