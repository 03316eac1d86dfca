"""The exceptions, as one small tree.

EchoSightError
├── InputError        the client sent something wrong; it had no effect
│   └── WireError     it is not a message of the wire's dialect
├── EngineFull        no conversation or response fits in now; retry after `retry_after` seconds
├── EngineFailure     the engine broke during a turn; the next turn may work
│   └── CannotSee     the model takes no images, and the request needs them seen
└── SetupError        the server cannot start: one sentence, and the command that helps
"""

__all__ = [
    "CannotSee",
    "EchoSightError",
    "EngineFailure",
    "EngineFull",
    "InputError",
    "SetupError",
    "WireError",
]


class EchoSightError(Exception):
    """The root. `code` is for programs (snake_case), the message for people."""

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class InputError(EchoSightError):
    """The client asked for something that cannot be done. `param` names the field that is wrong.

    `status` is what HTTP routes answer with; `client_event_id` echoes the client's own event id.
    """

    code = "invalid_value"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int = 400,
        client_event_id: str | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.param = param
        self.status = status
        self.client_event_id = client_event_id


class WireError(InputError):
    """The message is not one of its dialect: bad JSON, an unknown type, a wrong shape."""

    code = "invalid_message"


class EngineFull(EchoSightError):
    """No conversation can be added now. Callers answer 503 with `Retry-After`."""

    code = "engine_full"

    def __init__(self, message: str = "All conversations are taken", *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineFailure(EchoSightError):
    """The engine broke during a turn. That turn fails; the session lives on."""

    code = "engine_failed"


class CannotSee(EngineFailure):
    """The model takes no images, and `GenerateOptions.require_images` forbids to leave them out."""

    code = "unsupported"


class SetupError(EchoSightError):
    """The server cannot start as asked. The message says what is missing and the command that helps."""

    code = "setup_error"
