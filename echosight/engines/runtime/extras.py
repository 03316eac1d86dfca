"""Optional packages: check that they are installed, and say which command installs them."""

from __future__ import annotations

from importlib.util import find_spec

from echosight.errors import SetupError


def require_extra(part: str, *modules: str, extra: str, flag: str) -> None:
    """Check that `part` of the engine has its packages.

    `extra` is the project's extra that installs them, `flag` the option that the user started the server with.
    Raises `SetupError` with the command to run where one of `modules` is missing.
    """
    for module in modules:
        if find_spec(module) is None:
            raise SetupError(f"{part} needs the package {module}: uv run --extra {extra} model_server.py {flag}")
