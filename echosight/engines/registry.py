"""Which engine `--model` chooses. Imports it only then, so that nothing is needed which is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from echosight.engines import LLM, STT, Engine
from echosight.engines.cascade.engine import Cascade
from echosight.engines.cascade_parts import LLMS, STTS, TTSS, split
from echosight.engines.runtime.huggingface.source import fetch_config, is_local
from echosight.errors import SetupError
from echosight.settings import Settings

CONVERSATIONS = 32
"""That a cascade holds at once."""


def load(settings: Settings) -> Engine:
    """The engine, not yet started. Raises `SetupError` with the sentence that helps."""
    named = settings.model or (f"llama:{settings.llama_model_path}" if settings.llama_model_path else "")
    if not named or named == "echo":
        return _demo(settings)
    if named == "stub":
        from echosight.engines.stub import StubEngine

        return StubEngine()
    specs = [named] if Path(named).expanduser().exists() else split(named)
    if make := OMNI.get(str(_config(specs[0]).get("model_type"))):
        return make(specs[0], settings)
    chats = [_chat(spec, settings) for spec in specs]
    transcriber = STTS.choose(settings.stt, settings)
    voice = TTSS.choose(settings.tts or settings.tts_provider, settings)
    return Cascade(transcriber, LLMS.chained(chats, settings, specs), voice, capacity=CONVERSATIONS)


def _demo(settings: Settings) -> Engine:
    """What is built in, for it downloads nothing; other parts where they are named."""
    transcriber = STTS.choose(settings.stt or "sphinx", settings)
    voice = TTSS.choose(settings.tts or settings.tts_provider or "espeak", settings)
    return Cascade(transcriber, LLMS.make("echo", settings), voice, capacity=CONVERSATIONS)


def _chat(spec: str, settings: Settings) -> LLM:
    """A chat by its name, address, file, folder or Hugging Face id."""
    if spec.startswith(("http://", "https://")):
        from echosight.engines.llm.openai_http import from_url

        return from_url(spec, settings)
    if spec.partition(":")[0] in LLMS.makers:
        return LLMS.make(spec, settings)
    if spec.endswith(".gguf"):
        return LLMS.make(f"llama:{spec}", settings)
    return LLMS.make(f"local:{spec}", settings)


def _config(spec: str) -> dict[str, Any]:
    """The config.json of a folder or of a Hugging Face id; empty where `spec` is neither."""
    if spec.endswith(".gguf") or "://" in spec or spec.partition(":")[0] in LLMS.makers:
        return {}
    if is_local(spec) and not Path(spec).expanduser().is_dir():
        problem = f"{spec} is no model" if Path(spec).expanduser().exists() else f"There is no folder {spec}"
        raise SetupError(f"{problem}; --model takes a folder, a .gguf file, a Hugging Face id or a URL")
    return fetch_config(spec)


def _omni(source: str, settings: Settings) -> Engine:
    from echosight.engines.omni.load import load as load_omni

    return load_omni(source, device=settings.device, stt=_scribe(settings))


def _minicpmo(source: str, settings: Settings) -> Engine:
    from echosight.engines.minicpmo import engine as minicpmo

    return minicpmo.load(source, stt=_scribe(settings))


def _scribe(settings: Settings) -> STT | None:
    """Who writes down what an omni model hears: nobody unless asked, for it takes time from the model."""
    if settings.stt or settings.whisper_url:
        return STTS.choose(settings.stt, settings)
    return None


OMNI: dict[str, Callable[[str, Settings], Engine]] = {
    "qwen2_5_omni": _omni,
    "qwen3_omni_moe": _omni,
    "minicpmo": _minicpmo,
}
"""Model types that hear and speak by themselves; all others become the chat of a cascade."""
