"""How OpenAI's clients are told what is wrong: ``{"error": {message, type, param, code}}``, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from echosight.errors import EchoSightError, EngineFull, InputError

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class OpenAIErrorRoute(APIRoute):
    """A route whose errors are told that way."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def careful(request: Request) -> Response:
            try:
                return await handle(request)
            except EchoSightError as error:
                return refusal(error)
            except RequestValidationError as error:
                param, message = fault(error.errors())
                return refusal(InputError(message, param=param))
            except HTTPException as error:
                return refusal(InputError(str(error.detail), code="invalid_request", status=error.status_code))

        return careful


def refusal(error: EchoSightError) -> JSONResponse:
    kind, status, headers = "server_error", 500, {}
    param: str | None = None
    match error:
        case InputError():
            kind, status, param = "invalid_request_error", error.status, error.param
            if status == 401:
                headers = {"WWW-Authenticate": "Bearer"}
        case EngineFull():
            status, headers = 503, {"Retry-After": str(error.retry_after)}
        case _:
            pass
    told = {"message": error.message, "type": kind, "param": param, "code": error.code}
    return JSONResponse({"error": told}, status, headers)


def fault(errors: Sequence[Any]) -> tuple[str | None, str]:
    """The field at fault and a message that names it: of the members of a union, the one that was meant."""
    error = max(errors, key=lambda e: len(e["loc"]))
    # pydantic puts the names of union members, and FastAPI the word body, in between.
    steps = [str(step) for step in error["loc"] if "[" not in str(step) and step not in ("body", "str")]
    param = ".".join(steps) or None
    return param, f"{param or 'body'}: {error['msg']}"
