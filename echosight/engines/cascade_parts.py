"""The parts of a cascade: those that `--model`, `--stt` and `--tts` name, or the first that is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from echosight.engines import LLM, STT, TTS
from echosight.engines.cascade.fallback import LLMChain, STTChain, TTSChain
from echosight.errors import SetupError
from echosight.settings import Settings

log = logging.getLogger(__name__)

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class PartRegistry(Generic[Part]):
    """All implementations of one kind of part.

    A factory is ``module:function`` below `echosight.engines`, imported only when it is used. It takes the argument
    of ``name:argument`` (None without) and the settings, and raises `SetupError` where something is missing.
    """

    flag: str
    factories: dict[str, str]
    default_order: tuple[str, ...]
    """Where the user names none, the first of these that can be created."""
    url_setting: str
    """Where this setting is set, ``openai`` comes first in the default order; empty for none."""
    cloud_fallbacks: tuple[str, ...]
    """Take over where ENABLE_CLOUD_FALLBACK and their API keys are set."""
    builtin: str
    """Takes over last."""
    chain: Callable[[Sequence[Part]], Part]

    def create(self, spec: str, settings: Settings) -> Part:
        """The part that ``name[:argument]`` names. Raises `SetupError`."""
        name, _, argument = spec.partition(":")
        if name not in self.factories:
            raise SetupError(f"{self.flag} {name} is not known; choose one of {', '.join(self.factories)}")
        module, _, function = self.factories[name].partition(":")
        try:
            factory: Callable[[str | None, Settings], Part]
            factory = getattr(import_module(f"echosight.engines.{module}"), function)
            return factory(argument or None, settings)
        except ModuleNotFoundError as error:
            raise SetupError(
                f"{self.flag} {name} needs the package {error.name}: uv pip install {error.name}"
            ) from error

    def choose(self, names: str, settings: Settings, order: Sequence[str] = ()) -> Part:
        """The parts named (separated by commas), or the default one, with their fallbacks. Raises `SetupError`.

        `order` replaces `default_order`. The default one always has the built-in one as a fallback: it may turn out to
        lack something when it starts.
        """
        specs = split(names)
        parts = [self.create(spec, settings) for spec in specs] or [self._default(settings, order)]
        return self.with_fallbacks(parts, settings, specs, always_builtin=not specs)

    def with_fallbacks(
        self, parts: list[Part], settings: Settings, specs: Sequence[str] = (), *, always_builtin: bool = False
    ) -> Part:
        """A chain of the parts, of the cloud services and of the built-in one; those in `specs` are not added again.

        Cloud services need ENABLE_CLOUD_FALLBACK; so does the built-in one, unless `always_builtin`.
        """
        cloud = settings.enable_cloud_fallback
        fallbacks = (*(self.cloud_fallbacks if cloud else ()), *([self.builtin] if cloud or always_builtin else ()))
        used = {spec.partition(":")[0] for spec in specs}
        for name in fallbacks:
            if name not in used:
                fallback = self._try(name, settings)
                if fallback is not None and _name(fallback) not in [_name(part) for part in parts]:
                    parts.append(fallback)
        log.info("%s: %s", self.flag.removeprefix("--"), ", then ".join(_name(part) for part in parts))
        return parts[0] if len(parts) == 1 else self.chain(parts)

    def _default(self, settings: Settings, order: Sequence[str]) -> Part:
        has_url = self.url_setting and getattr(settings, self.url_setting)
        for name in (*(["openai"] if has_url else []), *(order or self.default_order)):
            if (part := self._try(name, settings)) is not None:
                return part
        raise SetupError(f"No package for {self.flag} is installed; `uv sync` installs the built-in one")

    def _try(self, name: str, settings: Settings) -> Part | None:
        try:
            return self.create(name, settings)
        except SetupError as error:
            log.debug("%s is not used: %s", name, error.message)
            return None


def split(names: str) -> list[str]:
    """The specs of a list that is separated by commas."""
    return [spec for entry in names.split(",") if (spec := entry.strip())]


def _name(part: Any) -> str:
    return str(part.name)


LLMS: PartRegistry[LLM] = PartRegistry(
    "--model",
    {
        "echo": "llm.echo:make_llm",
        "llama": "llm.llama_cpp:make_llm",
        "local": "llm.transformers.chat:make_llm",
        "openai": "llm.openai_http:openai",
        "groq": "llm.openai_http:groq",
        "deepseek": "llm.openai_http:deepseek",
    },
    default_order=("echo",),
    url_setting="",
    cloud_fallbacks=("deepseek", "groq", "openai"),
    builtin="llama",
    chain=LLMChain,
)

STTS: PartRegistry[STT] = PartRegistry(
    "--stt",
    {
        "whisper": "stt.whisper:make_stt",
        "vosk": "stt.vosk:make_stt",
        "sphinx": "stt.sphinx:make_stt",
        "openai": "stt.openai_http:openai",
        "groq": "stt.openai_http:groq",
        "deepgram": "stt.deepgram:make_stt",
    },
    default_order=("whisper", "vosk", "sphinx"),
    url_setting="whisper_url",
    cloud_fallbacks=("deepgram", "groq", "openai"),
    builtin="sphinx",
    chain=STTChain,
)

TTSS: PartRegistry[TTS] = PartRegistry(
    "--tts",
    {
        "kokoro": "tts.kokoro:make_tts",
        "piper": "tts.piper:make_tts",
        "hibari": "tts.hibari:make_tts",
        "vits": "tts.vits:make_tts",
        "espeak": "tts.espeak:make_tts",
        "pyttsx3": "tts.pyttsx3:make_tts",
        "openai": "tts.openai_http:openai",
        "deepgram": "tts.deepgram:make_tts",
    },
    default_order=("kokoro", "piper", "hibari", "espeak"),
    url_setting="tts_api_url",
    cloud_fallbacks=("deepgram", "openai"),
    builtin="espeak",
    chain=TTSChain,
)
