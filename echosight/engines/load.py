"""Which engine `--model` chooses. Imports it only then, so that nothing is needed which is not used."""

from __future__ import annotations

from collections.abc import Callable

from echosight.engines import Engine
from echosight.errors import SetupError
from echosight.settings import Settings


def load(settings: Settings) -> Engine:
    """The engine, not yet started. Raises `SetupError` with the sentence that helps."""
    make = _ENGINES.get(settings.model or "echo")
    if make is None:
        raise SetupError(
            f"No engine here runs the model {settings.model!r}; start without --model for the built-in demo engine"
        )
    try:
        return make(settings)
    except ModuleNotFoundError as error:
        raise SetupError(f"The Python package {error.name!r} is missing; `uv sync` installs it") from error


def _echo(settings: Settings) -> Engine:
    from echosight.engines.cascade import Cascade
    from echosight.engines.echo import EchoChat
    from echosight.engines.espeak import EspeakVoice
    from echosight.engines.sphinx import SphinxTranscriber

    transcriber = SphinxTranscriber(settings.speech_workers)
    return Cascade(transcriber, EchoChat(settings.max_history_turns), EspeakVoice(), capacity=32)


def _stub(settings: Settings) -> Engine:
    from echosight.engines.fake import StubEngine

    return StubEngine()


_ENGINES: dict[str, Callable[[Settings], Engine]] = {"echo": _echo, "stub": _stub}
