"""Packages that only some parts need, and the sentence that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from echosight.errors import SetupError


def require_extra(part: str, *modules: str, extra: str, flag: str) -> None:
    """Raises `SetupError` where a module is not installed; `flag` is what the user started the server with."""
    for module in modules:
        if find_spec(module) is None:
            raise SetupError(f"{part} needs the package {module}: uv run --extra {extra} model_server.py {flag}")
