"""Which engine `--model` selects. Engines are imported only when they are selected, so others need no packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from echosight.engines import LLM, STT, Engine
from echosight.engines.cascade.engine import Cascade
from echosight.engines.cascade_parts import LLMS, STTS, TTSS, split
from echosight.engines.runtime.huggingface.source import fetch_config, is_local
from echosight.engines.stt.whisper_embedded import NAME as EMBEDDED_WHISPER
from echosight.engines.stt.whisper_embedded import embedded_folder
from echosight.errors import SetupError
from echosight.settings import Settings

CASCADE_CAPACITY = 32
"""Conversations that a cascade holds at once."""


def load(settings: Settings) -> Engine:
    """The engine, not yet started. Raises `SetupError` with the command that helps."""
    model = settings.model or (f"llama:{settings.llama_model_path}" if settings.llama_model_path else "")
    if not model or model == "echo":
        return _default_engine(settings)
    if model == "stub":
        from echosight.engines.stub import StubEngine

        return StubEngine()
    specs = [model] if Path(model).expanduser().exists() else split(model)
    if create := OMNI_MODELS.get(str(_config(specs[0]).get("model_type"))):
        return create(specs[0], settings)
    llms = [_create_llm(spec, settings) for spec in specs]
    stt = STTS.choose(settings.stt, settings)
    tts = TTSS.choose(settings.tts or settings.tts_provider, settings)
    return Cascade(stt, LLMS.with_fallbacks(llms, settings, specs), tts, capacity=CASCADE_CAPACITY)


def _default_engine(settings: Settings) -> Engine:
    """The built-in parts, which download nothing, or other ones where the user names them.

    Whisper tiny.en and hibari come with packages of the group ``embedded``; without it, pocketsphinx and espeak-ng do
    their work, as they do where those fail.
    """
    stt = STTS.choose(settings.stt, settings, _embedded_stts())
    tts = TTSS.choose(settings.tts or settings.tts_provider, settings, ("hibari", "espeak"))
    return Cascade(stt, LLMS.create("echo", settings), tts, capacity=CASCADE_CAPACITY)


def _embedded_stts() -> tuple[str, ...]:
    return (f"whisper:{EMBEDDED_WHISPER}", "sphinx") if embedded_folder(EMBEDDED_WHISPER) else ("sphinx",)


def _create_llm(spec: str, settings: Settings) -> LLM:
    """`spec`: a name of `LLMS`, a URL, a .gguf file, a folder or a Hugging Face id."""
    if spec.startswith(("http://", "https://")):
        from echosight.engines.llm.openai_http import from_url

        return from_url(spec, settings)
    if spec.partition(":")[0] in LLMS.factories:
        return LLMS.create(spec, settings)
    if spec.endswith(".gguf"):
        return LLMS.create(f"llama:{spec}", settings)
    return LLMS.create(f"local:{spec}", settings)


def _config(spec: str) -> dict[str, Any]:
    """The config.json of a folder or of a Hugging Face id; empty where `spec` is neither. Raises `SetupError`."""
    if spec.endswith(".gguf") or "://" in spec or spec.partition(":")[0] in LLMS.factories:
        return {}
    if is_local(spec) and not Path(spec).expanduser().is_dir():
        problem = f"{spec} is not a model" if Path(spec).expanduser().exists() else f"There is no folder {spec}"
        raise SetupError(f"{problem}; --model takes a folder, a .gguf file, a Hugging Face id or a URL")
    return fetch_config(spec)


def _create_omni(source: str, settings: Settings) -> Engine:
    from echosight.engines.omni.load import load as load_omni

    return load_omni(source, device=settings.device, stt=_optional_stt(settings))


def _create_minicpmo(source: str, settings: Settings) -> Engine:
    from echosight.engines.minicpmo import engine as minicpmo

    return minicpmo.load(source, stt=_optional_stt(settings))


def _optional_stt(settings: Settings) -> STT | None:
    """The STT that transcribes for an omni model; None unless the user names one, as it takes time from the model."""
    if settings.stt or settings.whisper_url:
        return STTS.choose(settings.stt, settings)
    return None


OMNI_MODELS: dict[str, Callable[[str, Settings], Engine]] = {
    "qwen2_5_omni": _create_omni,
    "qwen3_omni_moe": _create_omni,
    "minicpmo": _create_minicpmo,
}
"""Values of ``model_type`` for models that take and give speech themselves; all others become the LLM of a cascade."""
