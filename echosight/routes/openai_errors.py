"""Errors in OpenAI's shape: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from echosight.errors import EchoSightError, InputError
from echosight.routes.errors import headers_of, status_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Model = TypeVar("Model", bound=BaseModel)


class OpenAIErrorRoute(APIRoute):
    """A route that renders errors in OpenAI's shape."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            try:
                return await handle(request)
            except EchoSightError as error:
                return openai_error_response(error)
            except RequestValidationError as error:
                param, message = first_error(error.errors())
                return openai_error_response(InputError(message, param=param))
            except HTTPException as error:
                wrapped = InputError(str(error.detail), code="invalid_request", status=error.status_code)
                return openai_error_response(wrapped)

        return handle_errors


def openai_error_response(error: EchoSightError) -> JSONResponse:
    kind, param = ("invalid_request_error", error.param) if isinstance(error, InputError) else ("server_error", None)
    body = {"message": error.message, "type": kind, "param": param, "code": error.code}
    return JSONResponse({"error": body}, status_of(error), headers_of(error))


def validate(model: type[Model], body: bytes) -> Model:
    """The JSON body as a model. Raises `InputError` that names the field at fault."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        param, message = first_error(error.errors(include_url=False, include_input=False, include_context=False))
        raise InputError(message, code="invalid_value", param=param) from error


def first_error(errors: Sequence[Any]) -> tuple[str | None, str]:
    """(param, message) of the deepest validation error: for a union, the member that matched furthest."""
    error = max(errors, key=lambda e: len(e["loc"]))
    # pydantic puts the names of union members into the path, and FastAPI the word body.
    steps = [str(step) for step in error["loc"] if "[" not in str(step) and step not in ("body", "str")]
    param = ".".join(steps) or None
    return param, f"{param or 'body'}: {error['msg']}"
