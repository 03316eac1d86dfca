"""Checking weight files before they are loaded: a library reads whatever bytes it finds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from echosight.errors import SetupError

_BLOCK_BYTES = 1 << 20


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits. Takes some 3 ms per MB."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(file: Path, expected: str) -> None:
    """Raises `SetupError` where the file is missing, or is not the one with this SHA-256."""
    if not file.is_file():
        raise SetupError(f"{file} is missing; reinstall the package that brings it")
    found = sha256_of(file)
    if found != expected:
        raise SetupError(
            f"{file} is damaged or not the expected file (sha256 {found[:12]}… instead of {expected[:12]}…); "
            "reinstall the package that brings it"
        )
