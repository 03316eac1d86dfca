"""Deepgram's transcription over a WebSocket, while the user speaks."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import orjson
import websockets

from echosight.engines.runtime.http_client import LOOPBACK, HttpService, PermanentError, deepgram_key, retry_after
from echosight.engines.runtime.retries import SPEECH_S, TransientError, retry
from echosight.errors import EngineFailure
from echosight.media import INPUT_SAMPLE_RATE, Transcript, Word
from echosight.settings import Settings

DEFAULT_MODEL = "nova-3"

CONNECT_S = 5.0
FINAL_S = 3.0
"""How long the last words may take to be final; then they are taken as they are."""

TOLERANCE_S = 0.05
BYTES_A_SECOND = 2 * INPUT_SAMPLE_RATE


class DeepgramSTT:
    """A `STT`: one WebSocket an utterance, partial texts and word times."""

    def __init__(self, url: str, key: str, model: str, language: str | None = None) -> None:
        self._http = HttpService(f"{url.rstrip('/')}/v1/listen", key, scheme="Token")
        self.name = f"{model} at {self._http.name}"
        self._key = key
        self._model = model
        self._language = language
        self._streams: dict[str, _Stream] = {}

    async def start(self) -> None:
        """Raises `SetupError` where nobody answers, or not to this key."""
        await self._http.reach()

    async def close(self) -> None:
        for utterance in list(self._streams):
            await self.forget(utterance)
        await self._http.close()

    async def hear(
        self, utterance: str, pcm: bytes, language: str | None = None, speaker: str | None = None
    ) -> str | None:
        """Send it on, as soon as there is a connection. Where there is none, `finish` will tell."""
        stream = self._streams.get(utterance)
        if stream is None:
            stream = self._streams[utterance] = _Stream(self._address(language or self._language), self._key)
        stream.send(pcm)
        # What came in meanwhile is taken in before it is reported.
        await asyncio.sleep(0)
        return stream.news()

    async def finish(self, utterance: str) -> Transcript:
        """Sends everything again on a new connection if the old one broke.

        Raises `TransientError`, `PermanentError` and EngineFailure.
        """
        if utterance not in self._streams:
            raise EngineFailure("The transcriber heard nothing of this turn")

        async def attempt() -> Transcript:
            stream = self._streams[utterance]
            if stream.broken:
                await stream.close()
                stream = self._streams[utterance] = stream.again()
            return await stream.finish()

        return await retry(attempt, SPEECH_S)

    async def forget(self, utterance: str) -> None:
        if (stream := self._streams.pop(utterance, None)) is not None:
            await stream.close()

    def _address(self, language: str | None) -> str:
        wanted = {
            "model": self._model,
            "encoding": "linear16",
            "sample_rate": str(INPUT_SAMPLE_RATE),
            "channels": "1",
            "interim_results": "true",
            "smart_format": "true",
            "language": language or "multi",
        }
        scheme = "wss" if self._http.url.scheme == "https" else "ws"
        return str(self._http.url.copy_with(scheme=scheme, params=wanted))


class _Stream:
    """One utterance: a task sends what is heard and takes in what is understood."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._key = key
        self._out: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._pcm = bytearray()
        self._understood = _Understood()
        self._reported = ""
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="deepgram")
        self._task.add_done_callback(lambda _: self._changed.set())

    @property
    def broken(self) -> bool:
        return self._task.done()

    def again(self) -> _Stream:
        """The same utterance on another connection."""
        stream = _Stream(self._address, self._key)
        stream.send(bytes(self._pcm))
        return stream

    def send(self, pcm: bytes) -> None:
        self._pcm += pcm
        self._out.put_nowait(pcm)

    def news(self) -> str | None:
        """The text so far, where it changed."""
        if (text := self._understood.text) == self._reported:
            return None
        self._reported = text
        return text

    async def finish(self) -> Transcript:
        """Ask for the last words and wait until they are final; hearing may go on afterwards."""
        self._understood.flushed = False
        self._out.put_nowait(orjson.dumps({"type": "Finalize"}).decode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S + FINAL_S):
                while not self._understood.up_to(len(self._pcm) / BYTES_A_SECOND):
                    self._changed.clear()
                    if self.broken:
                        self._task.result()
                        raise TransientError("Deepgram ended the connection")
                    await self._changed.wait()
        return self._understood.transcript

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()

    async def _run(self) -> None:
        try:
            async with await self._connect() as socket:
                sending = asyncio.create_task(self._pump(socket))
                try:
                    async for message in socket:
                        self._understood.take(orjson.loads(message))
                        self._changed.set()
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except websockets.ConnectionClosed as error:
            raise TransientError(
                f"Deepgram broke off: {error.rcvd.reason if error.rcvd else 'no reason given'}"
            ) from error
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise EngineFailure("Deepgram sent something that is no transcript") from error

    async def _connect(self) -> websockets.ClientConnection:
        loopback = httpx.URL(self._address).host in LOOPBACK
        try:
            return await websockets.connect(
                self._address,
                additional_headers={"Authorization": f"Token {self._key}"},
                open_timeout=CONNECT_S,
                close_timeout=1,
                proxy=None if loopback else True,
            )
        except websockets.InvalidStatus as error:
            status = error.response.status_code
            if status >= 500 or status == 429:
                wish = retry_after(error.response.headers)
                raise TransientError(f"Deepgram is in trouble ({status})", wish) from error
            raise PermanentError(f"Deepgram does not take the connection ({status})", status, "") from error
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            raise TransientError(f"Deepgram cannot be reached: {error or type(error).__name__}") from error

    async def _pump(self, socket: websockets.ClientConnection) -> None:
        while True:
            await socket.send(await self._out.get())


class _Understood:
    """What Deepgram made of the utterance: final stretches, and the one still open."""

    def __init__(self) -> None:
        self.final_s = 0.0
        self.flushed = False
        self._final: list[tuple[int, str]] = []
        self._open: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        return self.transcript.text

    @property
    def transcript(self) -> Transcript:
        words: list[Word] = []
        text = ""
        for start_ms, word in (*self._final, *self._open):
            text = f"{text} {word}".lstrip()
            words.append(Word(start_ms, len(text)))
        return Transcript(text, tuple(words))

    def up_to(self, sent_s: float) -> bool:
        """Whether all that was sent is final."""
        return self.flushed or self.final_s >= sent_s - TOLERANCE_S

    def take(self, message: Any) -> None:
        """A message: only results say something."""
        if message["type"] != "Results":
            return
        words = [
            (round(float(word["start"]) * 1000), str(word.get("punctuated_word") or word["word"]))
            for word in message["channel"]["alternatives"][0]["words"]
        ]
        if message["is_final"]:
            self._final += words
            self._open = []
            self.final_s = max(self.final_s, message["start"] + message["duration"])
        else:
            self._open = words
        self.flushed = self.flushed or bool(message.get("from_finalize"))


def transcriber(model: str | None, settings: Settings) -> DeepgramSTT:
    return DeepgramSTT(settings.deepgram_url, deepgram_key(settings), model or DEFAULT_MODEL, settings.language)
