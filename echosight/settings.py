"""Settings from the command line, the environment and `.env` (in that order), as one frozen object.

Every setting is a flag (`idle_timeout_s` is ``--idle-timeout-s``) and a variable (``SERVER_IDLE_TIMEOUT_S``); a few
variables have another name (``MODEL_ID``, ``RECORD``, ``OPENAI_API_BASE``). Tokens and keys have no flag.
"""

from __future__ import annotations

import argparse
import hmac
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from echosight.errors import SetupError
from echosight.options import AGGRESSIVENESS, GenerateOptions, SessionOptions, TurnDetectionOptions

_PREFIX = "SERVER_"
WORDS_PER_MINUTE = 175
"""Speech rate of the voices at `GenerateOptions.speed` 1."""

DEVICE_PROMPT = (
    "You are the voice of a small wearable device without a screen. Reply in 15 to 60 words of plain text that can be "
    "read aloud: short sentences, no lists, no markup, no emoji. To confirm an action, you may begin with [BEEP]: the "
    "device then plays a tone."
)
_DETECTION = TurnDetectionOptions()
_VISION_PROMPT = (
    "You are an expert visual assistant for someone who shows you what a camera sees. Describe the people, the "
    "objects and what happens. Name every danger and say why it is one. Suggest useful actions. Say only "
    "what the picture shows."
)


def _split_commas(value: object) -> object:
    return [stripped for part in value.split(",") if (stripped := part.strip())] if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _named(variable: str, description: str, default: Any = "", **limits: Any) -> Any:
    """A setting whose variable does not follow the pattern ``SERVER_…``."""
    return Field(default=default, validation_alias=variable, description=description, **limits)


def _default_host(settings: dict[str, Any]) -> str:
    """All addresses only where tokens protect the server, or where phones are meant to connect."""
    return "0.0.0.0" if settings.get("api_tokens") or settings.get("https") else "127.0.0.1"


class Settings(BaseSettings):
    """Everything that can be configured. Programs build it with `load` or `from_environment`, tests with keywords.

    Raises pydantic's `ValidationError` for invalid values.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=".env", extra="ignore", frozen=True, populate_by_name=True, env_ignore_empty=True
    )

    api_tokens: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        default=(), validation_alias="API_TOKENS", description="tokens that clients must present, separated by commas"
    )
    server_name: str = Field(
        default="EchoSight", min_length=1, validation_alias="SERVER_NAME", description="name that the server reports"
    )
    https: bool = Field(
        default=False, description="serve HTTPS with a self-signed certificate, so that phones may use their camera"
    )
    host: str = Field(
        default_factory=_default_host,
        description="address to listen on (default: 127.0.0.1, or 0.0.0.0 with API_TOKENS or --https)",
    )
    port: int = Field(default=32550, ge=0, le=65535, description="port to listen on (0: any free one)")
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)] = Field(
        default=(), description="web origins whose pages may connect, separated by commas"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="debug, info, warning or error"
    )

    model: str | None = Field(
        default=None,
        validation_alias="MODEL_ID",
        description="the model: an id, folder, file or URL (default: the built-in demo engine)",
    )
    stt: str = Field(
        default="", description="speech-to-text: name[:model],… in order of preference (default: the best available)"
    )
    tts: str = Field(
        default="", description="text-to-speech: name[:model],… in order of preference (default: the best available)"
    )
    tts_provider: Annotated[str, BeforeValidator(_lower)] = _named("TTS_PROVIDER", "means the same as --tts")
    device: str = Field(default="auto", description="where models run: auto, cpu, cuda or cuda:N")
    gpu_layers: int = Field(default=-1, ge=-1, description="layers that llama.cpp puts on the GPU (-1: all)")
    context_size: int = Field(
        default=4096, ge=256, description="tokens of context that llama.cpp keeps for a conversation"
    )
    system_prompt: str = Field(default="", description="instructions for the model, where the client sends none")
    vision_prompt: str = Field(
        default=_VISION_PROMPT, min_length=1, description="instructions for the model that describes single frames"
    )
    voice: str | None = Field(default=None, description="voice of the responses (default: the engine's first)")
    default_tts_instructions: str = _named(
        "DEFAULT_TTS_INSTRUCTIONS", "speaking style, for voices that take directions"
    )
    language: str | None = Field(default=None, description="spoken language, e.g. en (default: the engine's choice)")
    max_history_turns: int = Field(default=10, ge=1, description="earlier turns that are sent to a language model")
    speech_workers: int = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1),
        ge=1,
        description="speech processes of the built-in engine (default: one per core, at most 4)",
    )

    enable_cloud_fallback: bool = _named(
        "ENABLE_CLOUD_FALLBACK", "use hosted services whose keys are set when a part fails", False
    )
    openai_api_base: str = _named("OPENAI_API_BASE", "server of the `openai` parts", "https://api.openai.com/v1")
    whisper_url: str = _named("WHISPER_URL", "OpenAI-compatible transcription server")
    tts_api_url: str = _named("TTS_API_URL", "OpenAI-compatible speech server")
    deepgram_url: str = _named("DEEPGRAM_URL", "server of the `deepgram` parts", "https://api.deepgram.com")
    openai_api_key: SecretStr | None = _named("OPENAI_API_KEY", "API key for OPENAI_API_BASE", None)
    whisper_api_key: SecretStr | None = _named("WHISPER_API_KEY", "API key for WHISPER_URL", None)
    tts_api_key: SecretStr | None = _named("TTS_API_KEY", "API key for TTS_API_URL", None)
    groq_api_key: SecretStr | None = _named("GROQ_API_KEY", "API key for Groq", None)
    deepseek_api_key: SecretStr | None = _named("DEEPSEEK_API_KEY", "API key for DeepSeek", None)
    deepgram_api_key: SecretStr | None = _named("DEEPGRAM_API_KEY", "API key for DEEPGRAM_URL", None)
    llama_exe_path: str = _named("LLAMA_EXE_PATH", "llama.cpp's server program (default: llama-server on the PATH)")
    llama_model_path: str = _named("LLAMA_MODEL_PATH", "a .gguf file to use where --model is not set")
    vosk_model_path: str = _named("VOSK_MODEL_PATH", "folder of a Vosk model")
    kokoro_voice: str = _named("KOKORO_VOICE", "voice of Kokoro")
    piper_exe_path: str = _named("PIPER_EXE_PATH", "the piper program (default: the package piper-tts)")
    piper_model_path: str = _named("PIPER_MODEL_PATH", "the .onnx file of a Piper voice")

    vad_threshold: float = Field(
        default=_DETECTION.threshold, gt=0, le=1, description="speech probability from which audio counts as speech"
    )
    speech_threshold: float = Field(
        default=0.45, gt=0, le=1, description="the same for the voice assistant at /ws/audio"
    )
    silence_ms: int = Field(
        default=_DETECTION.min_endpointing_delay_ms,
        ge=32,
        le=10_000,
        description="silence that ends the user's turn, in ms",
    )
    min_speech_ms: int = Field(
        default=_DETECTION.min_speech_ms, ge=32, le=5_000, description="speech that starts a turn, in ms"
    )
    prefix_padding_ms: int = Field(
        default=_DETECTION.prefix_padding_ms,
        ge=0,
        le=5_000,
        description="audio kept from before the start of speech, in ms",
    )
    max_turn_s: float = Field(
        default=_DETECTION.max_turn_ms / 1000, ge=1, description="longest turn of live speech, in seconds"
    )

    default_system_prompt: str = _named("DEFAULT_SYSTEM_PROMPT", "instructions for bridge clients that send none")
    default_vad_aggr: int = _named("DEFAULT_VAD_AGGR", "VAD aggressiveness 0-3 for bridge clients", 2, ge=0, le=3)
    default_vad_start_ms: int = _named(
        "DEFAULT_VAD_START_MS", "bridge clients: speech that starts a turn, in ms", 120, ge=20
    )
    default_vad_end_ms: int = _named(
        "DEFAULT_VAD_END_MS", "bridge clients: silence that ends a turn, in ms", 450, ge=32
    )
    default_vad_pad_ms: int = _named(
        "DEFAULT_VAD_PAD_MS", "bridge clients: audio kept from before the start of speech, in ms", 180, ge=0
    )
    default_vad_max_ms: int = _named("DEFAULT_VAD_MAX_MS", "bridge clients: longest turn, in ms", 5_000, ge=100)
    default_vad_autoresp: bool = _named("DEFAULT_VAD_AUTORESP", "bridge clients: respond to each turn at once", True)
    default_vad_interrupt_response: bool = _named(
        "DEFAULT_VAD_INTERRUPT_RESPONSE", "bridge clients: speech stops a response", False
    )

    device_prompt: str = Field(
        default=DEVICE_PROMPT, description="small devices: instructions for the model, after those of --system-prompt"
    )
    device_dialect: str = Field(
        default="Indian English", description="small devices: the dialect that the model is told to reply in"
    )
    device_temperature: float = Field(default=0.2, ge=0, le=2, description="small devices: temperature of the model")
    device_max_tokens: int = Field(default=200, ge=1, description="small devices: most tokens of a response")
    device_words_per_minute: int = Field(
        default=WORDS_PER_MINUTE, ge=44, le=700, description="small devices: speech rate of the voice"
    )

    max_sessions: int = Field(default=0, ge=0, description="most sessions at once (0: as many as the engine can hold)")
    max_body_bytes: int = Field(default=32 << 20, ge=1024, description="largest HTTP body, in bytes")
    max_message_bytes: int = Field(default=16 << 20, ge=1024, description="largest WebSocket message, in bytes")
    max_image_pixels: int = Field(default=40_000_000, ge=1, description="largest image, in pixels")
    max_audio_seconds: float = Field(default=600, ge=1, description="longest recording in one request, in seconds")
    idle_timeout_s: float = Field(
        default=300, gt=0, description="close a session after this many seconds without input"
    )
    linger_s: float = Field(
        default=60, ge=0, description="keep a session for this many seconds after its client lost the socket"
    )

    record: bool = Field(default=False, validation_alias="RECORD", description="record sessions to disk")
    log_dir: Path = Field(
        default=Path("log_data"), validation_alias="LOG_DIR", description="folder for recordings and feedback"
    )
    max_record_mb: int = Field(default=1024, ge=1, description="delete the oldest recordings beyond this size in MB")
    max_record_days: float = Field(default=30, gt=0, description="delete recordings older than this many days")

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Settings:
        """Read the command line (`sys.argv` if None), the environment and `.env`.

        An invalid value ends the program with one sentence and exit status 2.
        """
        parser = _parser()
        flags = vars(parser.parse_args(sys.argv[1:] if argv is None else list(argv)))
        try:
            return cls(**flags)
        except ValidationError as error:
            parser.exit(2, f"{parser.prog}: {_sentence(error)}\n")

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment and `.env` only, for a server that another program starts. Raises `SetupError`."""
        try:
            return cls()
        except ValidationError as error:
            raise SetupError(_sentence(error)) from None

    def accepts_token(self, token: str | None) -> bool:
        """Whether a client with this token may use the server; without API_TOKENS every client may."""
        presented = (token or "").encode()
        matches = [hmac.compare_digest(presented, valid.get_secret_value().encode()) for valid in self.api_tokens]
        return any(matches) or not matches

    def bridge_turn_detection(self) -> TurnDetectionOptions:
        """Turn detection of bridge clients, which they switch on themselves."""
        return TurnDetectionOptions(
            threshold=AGGRESSIVENESS[self.default_vad_aggr],
            prefix_padding_ms=self.default_vad_pad_ms,
            min_speech_ms=self.default_vad_start_ms,
            min_endpointing_delay_ms=self.default_vad_end_ms,
            max_turn_ms=self.default_vad_max_ms,
            create_response=self.default_vad_autoresp,
            interrupt_response=self.default_vad_interrupt_response,
        )

    def device_instructions(self, language: str | None = None) -> str:
        """Instructions for the model that small devices talk to. The dialect is one of English only."""
        is_english = (language or self.language or "en").lower().partition("-")[0] == "en"
        dialect = f"Reply in {self.device_dialect}." if self.device_dialect and is_english else ""
        return "\n".join(text for text in (self.system_prompt, self.device_prompt, dialect) if text)

    def session_options(self) -> SessionOptions:
        """Options of a new session."""
        detection = TurnDetectionOptions(
            threshold=self.vad_threshold,
            prefix_padding_ms=self.prefix_padding_ms,
            min_speech_ms=self.min_speech_ms,
            min_endpointing_delay_ms=self.silence_ms,
            max_turn_ms=round(self.max_turn_s * 1000),
        )
        response = GenerateOptions(voice=self.voice, speaking_style=self.default_tts_instructions or None)
        return SessionOptions(
            instructions=self.system_prompt, language=self.language, turn_detection=detection, response=response
        )


_GROUPS = {
    "api_tokens": "server",
    "model": "model",
    "enable_cloud_fallback": "parts",
    "vad_threshold": "turns",
    "default_system_prompt": "bridge",
    "device_prompt": "devices",
    "max_sessions": "limits",
    "record": "recordings",
}


def _variable(name: str, field: FieldInfo) -> str:
    return str(field.validation_alias or _PREFIX + name.upper())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def _fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """(group, name, field) of every setting; `_GROUPS` names the first field of each group."""
    group = ""
    for name, field in Settings.model_fields.items():
        group = _GROUPS.get(name, group)
        yield group, name, field


def _parser() -> argparse.ArgumentParser:
    """One flag per setting. Absent flags are left out, so that the environment applies; `Settings` validates values."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name or "model_server.py",
        usage="%(prog)s [--model MODEL] [--port PORT] [--record] [options]",
        description="EchoSight: a server for live voice and vision.",
        epilog="API_TOKENS and …_API_KEY are variables only, so that no process list shows them. "
        "Variables can also be set in .env.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {}
    for group, name, field in _fields():
        if _is_secret(field):
            continue
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        add = groups[group].add_argument
        default = "" if field.default_factory or field.default in (None, "", ()) else f", default {field.default}"
        text = f"{field.description} [{_variable(name, field)}{default}]".replace("%", "%%")
        if field.annotation is bool:
            add(_flag(name), action=argparse.BooleanOptionalAction, help=text)
        else:
            add(_flag(name), metavar=name.rpartition("_")[2].upper(), help=text)
    return parser


def _sentence(error: ValidationError) -> str:
    """The first error as a sentence, without the value: it may be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    location = str(first["loc"][0])
    for _, name, field in _fields():
        if location.lower() in (name, _variable(name, field).lower()):
            return f"{_flag(name)} ({_variable(name, field)}): {first['msg']}"
    return f"{location}: {first['msg']}"
