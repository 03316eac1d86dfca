"""Which parts a cascade is made of: as `--model`, `--stt` and `--tts` name them, or the best that is installed."""

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
    """One of the three kinds of parts. A maker, ``module:function`` of this package, is imported when it is chosen.

    Makers take what stands behind the colon of ``name:argument`` (None without) and the settings; they raise
    `SetupError` where something is missing.
    """

    flag: str
    makers: dict[str, str]
    best: tuple[str, ...]
    """Taken where none is named: the first that can be made."""
    address: str
    """The setting that, where it is given, makes the part `openai` the best."""
    hosted: tuple[str, ...]
    """Take over where ENABLE_CLOUD_FALLBACK is set and their keys are."""
    embedded: str
    """Takes over last."""
    chain: Callable[[Sequence[Part]], Part]

    def make(self, spec: str, settings: Settings) -> Part:
        """The part that ``name[:argument]`` names. Raises `SetupError`."""
        name, _, argument = spec.partition(":")
        if name not in self.makers:
            known = ", ".join(self.makers)
            raise SetupError(f"{self.flag} {name} is not known; choose one of {known}")
        module, _, function = self.makers[name].partition(":")
        try:
            maker: Callable[[str | None, Settings], Part]
            maker = getattr(import_module(f"echosight.engines.{module}"), function)
            return maker(argument or None, settings)
        except ModuleNotFoundError as error:
            raise SetupError(
                f"{self.flag} {name} needs the package {error.name}: uv pip install {error.name}"
            ) from error

    def choose(self, named: str, settings: Settings) -> Part:
        """The parts named (separated by commas), or the best one; with those that take over where they fail.

        Behind the best one stands what is built in, for the best may turn out to lack something when it starts.
        """
        specs = split(named)
        parts = [self.make(spec, settings) for spec in specs] or [self._best(settings)]
        return self.chained(parts, settings, specs, safely=not specs)

    def chained(
        self, parts: list[Part], settings: Settings, specs: Sequence[str] = (), *, safely: bool = False
    ) -> Part:
        """The parts and who takes over: what is hosted, where ENABLE_CLOUD_FALLBACK is set, and what is built in.

        `safely`: what is built in also where it is not set.
        """
        cloud = settings.enable_cloud_fallback
        spares = (*(self.hosted if cloud else ()), *([self.embedded] if cloud or safely else ()))
        used = {spec.partition(":")[0] for spec in specs}
        for name in spares:
            if name not in used:
                spare = self._try(name, settings)
                if spare is not None and _name(spare) not in [_name(part) for part in parts]:
                    parts.append(spare)
        log.info("%s: %s", self.flag.removeprefix("--"), ", then ".join(_name(part) for part in parts))
        return parts[0] if len(parts) == 1 else self.chain(parts)

    def _best(self, settings: Settings) -> Part:
        addressed = self.address and getattr(settings, self.address)
        for name in ("openai", *self.best) if addressed else self.best:
            if (part := self._try(name, settings)) is not None:
                return part
        raise SetupError(f"Nothing is installed for {self.flag}; `uv sync` installs what is built in")

    def _try(self, name: str, settings: Settings) -> Part | None:
        try:
            return self.make(name, settings)
        except SetupError as error:
            log.debug("%s is not used: %s", name, error.message)
            return None


def split(named: str) -> list[str]:
    return [spec for piece in named.split(",") if (spec := piece.strip())]


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
    best=("echo",),
    address="",
    hosted=("deepseek", "groq", "openai"),
    embedded="llama",
    chain=LLMChain,
)

STTS: PartRegistry[STT] = PartRegistry(
    "--stt",
    {
        "whisper": "stt.whisper:transcriber",
        "vosk": "stt.vosk:transcriber",
        "sphinx": "stt.sphinx:transcriber",
        "openai": "stt.openai_http:openai",
        "groq": "stt.openai_http:groq",
        "deepgram": "stt.deepgram:transcriber",
    },
    address="whisper_url",
    best=("whisper", "vosk", "sphinx"),
    hosted=("deepgram", "groq", "openai"),
    embedded="sphinx",
    chain=STTChain,
)

TTSS: PartRegistry[TTS] = PartRegistry(
    "--tts",
    {
        "kokoro": "tts.kokoro:voice",
        "piper": "tts.piper:voice",
        "vits": "tts.vits:voice",
        "espeak": "tts.espeak:voice",
        "pyttsx3": "tts.pyttsx3:voice",
        "openai": "tts.openai_http:openai",
        "deepgram": "tts.deepgram:voice",
    },
    address="tts_api_url",
    best=("kokoro", "piper", "espeak"),
    hosted=("deepgram", "openai"),
    embedded="espeak",
    chain=TTSChain,
)
