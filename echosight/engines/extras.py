"""Packages that only some parts need, and the sentence that installs them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from echosight.errors import SetupError

Progress = Callable[[str, float], None]
"""What is being loaded, and how much of all is done (0-1)."""


def silent(what: str, done: float) -> None:
    """The progress that nobody watches."""


def need(part: str, *modules: str, extra: str, flag: str) -> None:
    """Raises `SetupError` where a module is not installed; `flag` is what the user started the server with."""
    for module in modules:
        if find_spec(module) is None:
            raise SetupError(f"{part} needs the package {module}: uv run --extra {extra} model_server.py {flag}")
