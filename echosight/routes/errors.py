"""Errors as HTTP responses: their status, their headers, and EchoSight's own shape of the body."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from echosight.errors import EchoSightError, EngineFull, InputError


def status_of(error: EchoSightError) -> int:
    match error:
        case InputError():
            return error.status
        case EngineFull():
            return 503
        case _:
            return 500


def headers_of(error: EchoSightError) -> dict[str, str]:
    """The headers that HTTP requires beside the status."""
    match error:
        case EngineFull():
            return {"Retry-After": str(error.retry_after)}
        case InputError(status=401):
            return {"WWW-Authenticate": "Bearer"}
        case InputError(status=426):
            return {"Upgrade": "websocket", "Connection": "Upgrade"}
        case _:
            return {}


def echosight_error_response(error: EchoSightError) -> JSONResponse:
    """``{"detail", "code", "param"}``; only mistakes of the client have a `param`."""
    body: dict[str, str | None] = {"detail": error.message, "code": error.code}
    if isinstance(error, InputError):
        body["param"] = error.param
    return JSONResponse(body, status_of(error), headers_of(error))
