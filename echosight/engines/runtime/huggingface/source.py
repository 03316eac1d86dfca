"""A model's source: a local folder, or an ``owner/name`` id of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from echosight.engines.runtime.huggingface.download import download, download_file
from echosight.errors import SetupError


def is_local(source: str) -> bool:
    """Whether `source` means a folder: it exists, is written as a path, or cannot be an ``owner/name`` id."""
    return Path(source).expanduser().exists() or source.startswith((".", "/", "~")) or source.count("/") != 1


def read_config(folder: Path, source: str = "") -> dict[str, Any]:
    """The folder's ``config.json``. `source`, the user's name for the folder, goes into the error message.

    Raises `SetupError` where the folder or a readable ``config.json`` is missing.
    """
    if not folder.is_dir():
        raise SetupError(f"There is no folder {folder}; give --model an existing folder or a Hugging Face id")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(
            f"{source or folder} holds no readable config.json, so it is no model folder: {error}"
        ) from error
    return config if isinstance(config, dict) else {}


def fetch_config(source: str) -> dict[str, Any]:
    """The ``config.json`` of a folder or of a hub id; downloads only that file. Raises `SetupError`."""
    if is_local(source):
        return read_config(Path(source).expanduser(), source)
    try:
        file = download_file(source, "config.json")
    except ModuleNotFoundError:
        raise SetupError(
            f"{source} needs transformers: uv run --extra local model_server.py --model {source}"
        ) from None
    except (OSError, ValueError) as error:
        raise SetupError(f"{source} is no folder here, and it could not be downloaded: {first_line(error)}") from error
    return read_config(file.parent, source)


def fetch(source: str, files: Iterable[str], flag: str = "--model ") -> Path:
    """The model's folder. For a hub id, downloads the `files` (glob patterns) that the cache lacks.

    `flag`, the option that named the model, goes into the error message. Raises `SetupError`.
    """
    if is_local(source):
        folder = Path(source).expanduser()
        read_config(folder)
        return folder
    try:
        return download(source, files)
    except (OSError, ValueError) as error:
        raise SetupError(
            f"{source} is no folder here, and it could not be downloaded ({first_line(error)}): on a machine with a "
            f"network, run hf download {source} --local-dir DIR, then start with {flag}DIR"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class where the message is empty."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
