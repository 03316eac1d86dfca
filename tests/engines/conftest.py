"""What tests of engines share: the built-in speech parts, and the pauses between the attempts of a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from echosight.engines.stt.sphinx import SphinxSTT
from echosight.engines.tts.espeak import EspeakTTS


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts; they are recorded instead of slept."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("echosight.engines.runtime.retries.sleep", sleep)
    return pauses


@pytest.fixture
async def stt() -> AsyncGenerator[SphinxSTT]:
    stt = SphinxSTT()
    await stt.start()
    yield stt
    await stt.close()


@pytest.fixture
async def tts() -> AsyncGenerator[EspeakTTS]:
    tts = EspeakTTS()
    await tts.start()
    yield tts
    await tts.close()
