"""Settings: from the command line, the environment and `.env`, in that order, as one frozen object.

Every setting is a flag (`idle_timeout_s` is ``--idle-timeout-s``) and a variable (``SERVER_IDLE_TIMEOUT_S``);
a few variables go by a name of their own (``MODEL_ID``, ``RECORD``, ``OPENAI_API_BASE``). Tokens and keys have no flag.
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

from echosight.options import AGGRESSIVENESS, GenerateOptions, SessionOptions, TurnDetectionOptions

_PREFIX = "SERVER_"
_TURN = TurnDetectionOptions()


def _commas(value: object) -> object:
    return [part for piece in value.split(",") if (part := piece.strip())] if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _own(variable: str, description: str, default: Any = "", **limits: Any) -> Any:
    """A setting whose variable is known under a name of its own."""
    return Field(default=default, validation_alias=variable, description=description, **limits)


def _loopback_unless_asked(known: dict[str, Any]) -> str:
    return "0.0.0.0" if known.get("api_tokens") or known.get("https") else "127.0.0.1"


class Settings(BaseSettings):
    """All that whoever runs the server can choose. Build it with `load`; tests may build it with keywords.

    Raises pydantic's `ValidationError` on values that make no sense.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=".env", extra="ignore", frozen=True, populate_by_name=True, env_ignore_empty=True
    )

    api_tokens: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_commas)] = Field(
        default=(), validation_alias="API_TOKENS", description="tokens that open the routes, separated by commas"
    )
    server_name: str = Field(
        default="EchoSight", min_length=1, validation_alias="SERVER_NAME", description="what the server calls itself"
    )
    https: bool = Field(
        default=False, description="serve https with a certificate of its own, so that phones may use their camera"
    )
    host: str = Field(
        default_factory=_loopback_unless_asked,
        description="address to listen at (default: 127.0.0.1, or 0.0.0.0 with API_TOKENS or --https)",
    )
    port: int = Field(default=32550, ge=0, le=65535, description="port to listen at")
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_commas)] = Field(
        default=(), description="web origins that may call from a browser, separated by commas"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="debug, info, warning or error"
    )

    model: str | None = Field(
        default=None,
        validation_alias="MODEL_ID",
        description="what answers: a model's id, folder, file or URL (default: the built-in demo engine)",
    )
    stt: str = Field(
        default="", description="what hears: name[:model],… in order of preference (default: the best here)"
    )
    tts: str = Field(
        default="", description="what speaks: name[:model],… in order of preference (default: the best here)"
    )
    tts_provider: Annotated[str, BeforeValidator(_lower)] = _own("TTS_PROVIDER", "means the same as --tts")
    device: str = Field(default="auto", description="where models run: auto, cpu, cuda or cuda:N")
    gpu_layers: int = Field(default=-1, ge=-1, description="layers that llama.cpp puts on the GPU (-1: all)")
    context_size: int = Field(default=4096, ge=256, description="tokens that llama.cpp keeps of a conversation")
    system_prompt: str = Field(default="", description="instructions for the model, where a client gives none")
    voice: str | None = Field(default=None, description="voice of the answers (default: the engine's first)")
    language: str | None = Field(default=None, description="language spoken, e.g. en (default: the engine's choice)")
    max_history_turns: int = Field(default=10, ge=1, description="turns that a model is reminded of")
    speech_workers: int = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1),
        ge=1,
        description="processes that hear and speak for the built-in engine (default: one a core, at most 4)",
    )

    enable_cloud_fallback: bool = _own(
        "ENABLE_CLOUD_FALLBACK", "hosted parts whose keys are set take over from parts that fail", False
    )
    openai_api_base: str = _own("OPENAI_API_BASE", "the server of the parts `openai`", "https://api.openai.com/v1")
    whisper_url: str = _own("WHISPER_URL", "OpenAI-compatible transcription server")
    tts_api_url: str = _own("TTS_API_URL", "OpenAI-compatible speech server")
    deepgram_url: str = _own("DEEPGRAM_URL", "the server of the parts `deepgram`", "https://api.deepgram.com")
    openai_api_key: SecretStr | None = _own("OPENAI_API_KEY", "key of OPENAI_API_BASE", None)
    whisper_api_key: SecretStr | None = _own("WHISPER_API_KEY", "key of WHISPER_URL", None)
    tts_api_key: SecretStr | None = _own("TTS_API_KEY", "key of TTS_API_URL", None)
    groq_api_key: SecretStr | None = _own("GROQ_API_KEY", "key of Groq", None)
    deepseek_api_key: SecretStr | None = _own("DEEPSEEK_API_KEY", "key of DeepSeek", None)
    deepgram_api_key: SecretStr | None = _own("DEEPGRAM_API_KEY", "key of DEEPGRAM_URL", None)
    llama_exe_path: str = _own("LLAMA_EXE_PATH", "llama.cpp's server (default: llama-server, where it is found)")
    llama_model_path: str = _own("LLAMA_MODEL_PATH", "a .gguf file that answers where --model names nothing")
    vosk_model_path: str = _own("VOSK_MODEL_PATH", "folder of a Vosk model")
    kokoro_voice: str = _own("KOKORO_VOICE", "voice of Kokoro")
    piper_exe_path: str = _own("PIPER_EXE_PATH", "the program piper (default: the package piper-tts)")
    piper_model_path: str = _own("PIPER_MODEL_PATH", "the .onnx file of a Piper voice")

    vad_threshold: float = Field(default=_TURN.threshold, gt=0, le=1, description="probability that counts as speech")
    silence_ms: int = Field(
        default=_TURN.min_endpointing_delay_ms, ge=32, le=10_000, description="silence that ends a turn"
    )
    min_speech_ms: int = Field(default=_TURN.min_speech_ms, ge=32, le=5_000, description="speech that begins a turn")
    prefix_padding_ms: int = Field(
        default=_TURN.prefix_padding_ms, ge=0, le=5_000, description="audio kept from before speech was noticed"
    )
    max_turn_s: float = Field(default=_TURN.max_turn_ms / 1000, ge=1, description="longest turn that is spoken live")

    default_tts_instructions: str = _own("DEFAULT_TTS_INSTRUCTIONS", "how to speak, for voices that take directions")
    default_system_prompt: str = _own("DEFAULT_SYSTEM_PROMPT", "instructions for bridge clients that give none")
    default_vad_aggr: int = _own("DEFAULT_VAD_AGGR", "how sure speech must be, for bridge clients", 2, ge=0, le=3)
    default_vad_start_ms: int = _own("DEFAULT_VAD_START_MS", "speech that begins their turns", 120, ge=20)
    default_vad_end_ms: int = _own("DEFAULT_VAD_END_MS", "silence that ends their turns", 450, ge=32)
    default_vad_pad_ms: int = _own("DEFAULT_VAD_PAD_MS", "audio kept from before their speech", 180, ge=0)
    default_vad_max_ms: int = _own("DEFAULT_VAD_MAX_MS", "their longest turn", 5_000, ge=100)
    default_vad_autoresp: bool = _own("DEFAULT_VAD_AUTORESP", "whether their turns are answered at once", True)
    default_vad_interrupt_response: bool = _own(
        "DEFAULT_VAD_INTERRUPT_RESPONSE", "whether their speech stops an answer", False
    )

    max_sessions: int = Field(default=0, ge=0, description="sessions at once (0: what the engine can hold)")
    max_body_bytes: int = Field(default=32 << 20, ge=1024, description="largest HTTP body")
    max_message_bytes: int = Field(default=16 << 20, ge=1024, description="largest WebSocket message")
    max_image_pixels: int = Field(default=40_000_000, ge=1, description="largest picture")
    max_audio_seconds: float = Field(default=600, ge=1, description="longest recording in one request")
    idle_timeout_s: float = Field(default=300, gt=0, description="a session that hears nothing for so long is closed")
    linger_s: float = Field(default=60, ge=0, description="a session is kept so long for a client that lost its socket")

    record: bool = Field(default=False, validation_alias="RECORD", description="keep what is said and shown on disk")
    log_dir: Path = Field(default=Path("log_data"), validation_alias="LOG_DIR", description="where recordings go")
    max_record_mb: int = Field(default=1024, ge=1, description="recordings beyond this size: the oldest are deleted")
    max_record_days: float = Field(default=30, gt=0, description="recordings older than this are deleted")

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Settings:
        """Read the command line (`sys.argv` if None), the environment and `.env`.

        A mistake ends the program with one sentence and exit status 2.
        """
        parser = _parser()
        given = vars(parser.parse_args(sys.argv[1:] if argv is None else list(argv)))
        try:
            return cls(**given)
        except ValidationError as error:
            parser.exit(2, f"{parser.prog}: {_sentence(error)}\n")

    def admits(self, token: str | None) -> bool:
        """Whether a caller with this token may come in; without API_TOKENS everybody may."""
        offered = (token or "").encode()
        matches = [hmac.compare_digest(offered, known.get_secret_value().encode()) for known in self.api_tokens]
        return any(matches) or not matches

    def bridge_turn(self) -> TurnDetectionOptions:
        """How turns of bridge clients are found, once they ask for it."""
        return TurnDetectionOptions(
            threshold=AGGRESSIVENESS[self.default_vad_aggr],
            prefix_padding_ms=self.default_vad_pad_ms,
            min_speech_ms=self.default_vad_start_ms,
            min_endpointing_delay_ms=self.default_vad_end_ms,
            max_turn_ms=self.default_vad_max_ms,
            create_response=self.default_vad_autoresp,
            interrupt_response=self.default_vad_interrupt_response,
        )

    def session_options(self) -> SessionOptions:
        """What a session starts with."""
        turn = TurnDetectionOptions(
            threshold=self.vad_threshold,
            prefix_padding_ms=self.prefix_padding_ms,
            min_speech_ms=self.min_speech_ms,
            min_endpointing_delay_ms=self.silence_ms,
            max_turn_ms=round(self.max_turn_s * 1000),
        )
        answer = GenerateOptions(voice=self.voice, speaking_style=self.default_tts_instructions or None)
        return SessionOptions(
            instructions=self.system_prompt, language=self.language, turn_detection=turn, response=answer
        )


_GROUPS = {
    "api_tokens": "server",
    "model": "model",
    "enable_cloud_fallback": "parts",
    "vad_threshold": "turns",
    "default_system_prompt": "bridge",
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
    """(group, name, field) of every setting; a group begins at the fields named in `_GROUPS`."""
    group = ""
    for name, field in Settings.model_fields.items():
        group = _GROUPS.get(name, group)
        yield group, name, field


def _parser() -> argparse.ArgumentParser:
    """One flag a setting; absent flags leave no trace, so the environment decides. Values are judged by `Settings`."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name or "model_server.py",
        usage="%(prog)s [--model MODEL] [--port PORT] [--record] [options]",
        description="EchoSight: a server for live voice and vision.",
        epilog="API_TOKENS and …_API_KEY are variables only, so that no process list shows them. "
        "Variables may also stand in .env.",
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
    """The first mistake in words, without the value: it may be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    at = str(first["loc"][0])
    for _, name, field in _fields():
        if at.lower() in (name, _variable(name, field).lower()):
            return f"{_flag(name)} ({_variable(name, field)}): {first['msg']}"
    return f"{at}: {first['msg']}"
