"""Loading a Whisper model for faster-whisper: from a folder, or downloaded by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from echosight.engines.runtime.huggingface.source import fetch, first_line
from echosight.engines.runtime.progress import report
from echosight.engines.stt.whisper_embedded import check_embedded, embedded_folder
from echosight.errors import SetupError

FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")


def load_model(source: str, device: str = "auto") -> Any:
    """A `faster_whisper.WhisperModel`. `source`: a folder, a Hugging Face id or a size.

    A size is taken from the package that has it, else from the hub's cache, else it is downloaded.

    `device`: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. Raises `SetupError`.
    """
    import ctranslate2
    from faster_whisper import WhisperModel

    if is_folder(source):
        folder = check_folder(Path(source).expanduser())
    elif (embedded := embedded_folder(source)) is not None:
        folder = check_embedded(embedded)
    else:
        folder = check_folder(_download(source))
    report("weights")
    gpu = device != "cpu" and ctranslate2.get_cuda_device_count() > 0
    if device.startswith("cuda") and not gpu:
        raise SetupError("There is no CUDA device here: choose --device cpu")
    try:
        return WhisperModel(
            str(folder),
            device="cuda" if gpu else "cpu",
            device_index=int(device.partition(":")[2] or 0),
            compute_type="float16" if gpu else "int8",
            cpu_threads=max(1, (os.cpu_count() or 2) // 2),
            num_workers=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise SetupError(f"{source} could not be loaded by faster-whisper: {first_line(error)}") from error


def is_folder(source: str) -> bool:
    """Whether `source` is meant as a path, and not as a name."""
    return Path(source).expanduser().exists() or source.startswith((".", "/", "~"))


def check_folder(folder: Path) -> Path:
    """Raises `SetupError` where the folder holds no converted model."""
    if not folder.is_dir():
        raise SetupError(f"There is no folder {folder}; --stt whisper:small downloads a model")
    if not (folder / "model.bin").is_file():
        raise SetupError(
            f"{folder} holds no model.bin, so it was not converted: "
            f"ct2-transformers-converter --model {folder} --output_dir DIR --copy_files tokenizer.json"
        )
    return folder


def _download(source: str) -> Path:
    # faster-whisper's own download shows no progress.
    from faster_whisper import utils

    repository = source if "/" in source else utils._MODELS.get(source)
    if repository is None:
        sizes = ", ".join(utils.available_models())
        raise SetupError(f"There is no Whisper called {source!r}; --stt whisper: takes a folder or one of {sizes}")
    return fetch(repository, FILES, flag="--stt whisper:")
