"""Downloads from the Hugging Face hub, with their progress."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from echosight.engines.runtime.progress import progress_bar, report


def download(repository: str, files: Iterable[str]) -> Path:
    """The local folder of a hub repository; downloads the `files` (glob patterns) that the cache lacks.

    Raises OSError (network, missing repository) and ValueError (malformed id).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    report("files")
    bar = progress_bar(tqdm, "files", unit="B")
    return Path(snapshot_download(repository, allow_patterns=list(files), tqdm_class=bar))


def download_file(repository: str, name: str) -> Path:
    """The local path of one file of a hub repository, downloaded where the cache lacks it.

    Raises OSError, ValueError, and ModuleNotFoundError without huggingface_hub.
    """
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name))
