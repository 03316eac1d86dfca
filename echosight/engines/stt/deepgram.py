"""Deepgram's transcription over a WebSocket, while the user speaks."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from weakref import WeakSet

import httpx
import orjson
import websockets

from echosight.engines.runtime.http_client import LOOPBACK, HttpService, PermanentError, deepgram_key, retry_after
from echosight.engines.runtime.retries import SPEECH_BACKOFF_S, TransientError, retry
from echosight.engines.stt import STREAM_CLOSED
from echosight.errors import EngineFailure
from echosight.media import INPUT_SAMPLE_RATE, Transcript, Word, pcm_ms
from echosight.settings import Settings

DEFAULT_MODEL = "nova-3"

CONNECT_TIMEOUT_S = 5.0
FINAL_TIMEOUT_S = 3.0
"""How long the last words may take to become final; after that they are taken as they are."""

TOLERANCE_S = 0.05
BYTES_PER_SECOND = 2 * INPUT_SAMPLE_RATE


class DeepgramSTT:
    """An `STT`: one WebSocket per utterance, with partial texts and word times."""

    def __init__(self, url: str, key: str, model: str, language: str | None = None) -> None:
        self._service = HttpService(f"{url.rstrip('/')}/v1/listen", key, scheme="Token")
        self.name = f"{model} at {self._service.name}"
        self._key = key
        self._model = model
        self._language = language
        self._streams: WeakSet[DeepgramStream] = WeakSet()

    async def start(self) -> None:
        """Raises `SetupError` where the service does not respond or does not accept the key."""
        await self._service.ping()

    async def close(self) -> None:
        for stream in [*self._streams]:
            await stream.close()
        await self._service.close()

    def open(self, language: str | None = None, speaker: str | None = None) -> DeepgramStream:
        """Deepgram refuses languages that the model does not know: then the stream tries without the region, and then
        lets the model detect the language."""
        language = language or self._language or ""
        candidates = dict.fromkeys((language, language.partition("-")[0], "multi"))
        stream = DeepgramStream([self._address(candidate) for candidate in candidates if candidate], self._key)
        self._streams.add(stream)
        return stream

    def _address(self, language: str) -> str:
        params = {
            "model": self._model,
            "encoding": "linear16",
            "sample_rate": str(INPUT_SAMPLE_RATE),
            "channels": "1",
            "interim_results": "true",
            "smart_format": "true",
            "language": language,
        }
        scheme = "wss" if self._service.url.scheme == "https" else "ws"
        return str(self._service.url.copy_with(scheme=scheme, params=params))


class DeepgramStream:
    """An `STTStream` that keeps the audio, so that it can send all of it again on another connection.

    The connection goes to the first of `addresses` that Deepgram accepts.
    """

    def __init__(self, addresses: list[str], key: str) -> None:
        self._addresses = addresses
        self._key = key
        self._pcm = bytearray()
        self._connection: _Connection | None = None
        self._reported = ""
        self._closed = False

    async def push(self, pcm: bytes) -> str | None:
        """Queue the audio for sending. Where the connection is broken, only `finalize` raises."""
        self._check_open()
        if pcm:
            self._pcm += pcm
            self._connection = self._connection or _Connection(self._addresses, self._key)
            self._connection.send(pcm)
        # Lets the connection's task receive results that have arrived.
        await asyncio.sleep(0)
        text = self._connection.results.transcript().text if self._connection is not None else ""
        if text == self._reported:
            return None
        self._reported = text
        return text

    async def finalize(self) -> Transcript:
        """Sends everything again on a new connection if the old one broke.

        Also raises `TransientError` and `PermanentError`.
        """
        self._check_open()
        if self._connection is None:
            return Transcript("")
        transcript = await retry(self._attempt, SPEECH_BACKOFF_S)
        self._reported = transcript.text
        return transcript

    async def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def _attempt(self) -> Transcript:
        self._check_open()
        if self._connection is None or self._connection.broken:
            self._connection = await self._reconnect()
        return await self._connection.flush(len(self._pcm))

    async def _reconnect(self) -> _Connection:
        if self._connection is not None:
            await self._connection.close()
            self._check_open()
        connection = _Connection(self._addresses, self._key)
        connection.send(bytes(self._pcm))
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise EngineFailure(STREAM_CLOSED)


class _Connection:
    """One WebSocket: a task sends the queued audio and receives the results."""

    def __init__(self, addresses: list[str], key: str) -> None:
        self.results = ResultBuffer()
        self._addresses = addresses
        self._key = key
        self._outgoing: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="deepgram")
        self._task.add_done_callback(lambda _: self._changed.set())

    @property
    def broken(self) -> bool:
        return self._task.done()

    def send(self, pcm: bytes) -> None:
        self._outgoing.put_nowait(pcm)

    async def flush(self, size: int) -> Transcript:
        """Wait until the results for the first `size` bytes are final, but not for ever. More may be sent after it."""
        self.results.finalized = False
        self._outgoing.put_nowait(orjson.dumps({"type": "Finalize"}).decode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S + FINAL_TIMEOUT_S):
                while not self.results.covers(size / BYTES_PER_SECOND):
                    self._changed.clear()
                    if self.broken:
                        self._raise_failure()
                    await self._changed.wait()
        return self.results.transcript(pcm_ms(size))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            # Retrieved, so that asyncio does not log it.
            self._task.exception()

    def _raise_failure(self) -> None:
        if self._task.cancelled():
            raise EngineFailure(STREAM_CLOSED)
        self._task.result()
        raise TransientError("Deepgram closed the connection")

    async def _run(self) -> None:
        try:
            async with await self._connect() as socket:
                sending = asyncio.create_task(self._send_loop(socket))
                try:
                    async for message in socket:
                        self.results.add(orjson.loads(message))
                        self._changed.set()
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except websockets.ConnectionClosed as error:
            reason = error.rcvd.reason if error.rcvd else "no reason given"
            raise TransientError(f"Deepgram broke off the connection: {reason}") from error
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise EngineFailure("Deepgram sent a message that is no transcript") from error

    async def _connect(self) -> websockets.ClientConnection:
        for address in self._addresses[:-1]:
            try:
                return await self._connect_to(address)
            except PermanentError as error:
                if error.status != 400:
                    raise
        return await self._connect_to(self._addresses[-1])

    async def _connect_to(self, address: str) -> websockets.ClientConnection:
        loopback = httpx.URL(address).host in LOOPBACK
        try:
            return await websockets.connect(
                address,
                additional_headers={"Authorization": f"Token {self._key}"},
                open_timeout=CONNECT_TIMEOUT_S,
                close_timeout=1,
                proxy=None if loopback else True,
            )
        except websockets.InvalidStatus as error:
            status = error.response.status_code
            if status >= 500 or status == 429:
                raise TransientError(
                    f"Deepgram is unavailable ({status})", retry_after(error.response.headers)
                ) from error
            raise PermanentError(f"Deepgram refuses the connection ({status})", status, "") from error
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            raise TransientError(f"Deepgram cannot be reached: {error or type(error).__name__}") from error

    async def _send_loop(self, socket: websockets.ClientConnection) -> None:
        while True:
            await socket.send(await self._outgoing.get())


class ResultBuffer:
    """Deepgram's results for an utterance: final segments, and the one that may still change."""

    def __init__(self) -> None:
        self.finalized = False
        """Whether Deepgram has answered the last Finalize message."""
        self._final_s = 0.0
        self._final: list[tuple[int, str]] = []
        self._open: list[tuple[int, str]] = []

    def transcript(self, duration_ms: int | None = None) -> Transcript:
        """The words so far, their times within `duration_ms`."""
        words: list[Word] = []
        text, now_ms = "", 0
        for start_ms, word in (*self._final, *self._open):
            if not word:
                continue
            text = f"{text} {word}".lstrip()
            now_ms = max(now_ms, start_ms if duration_ms is None else min(start_ms, duration_ms))
            words.append(Word(now_ms, len(text)))
        return Transcript(text, tuple(words))

    def covers(self, seconds: float) -> bool:
        """Whether the results for that much audio are final."""
        return self.finalized or self._final_s >= seconds - TOLERANCE_S

    def add(self, message: Any) -> None:
        """A message from Deepgram; only those of type ``Results`` count."""
        if message["type"] != "Results":
            return
        words = [
            (round(float(word["start"]) * 1000), str(word.get("punctuated_word") or word["word"]))
            for word in message["channel"]["alternatives"][0]["words"]
        ]
        if message["is_final"]:
            self._final += words
            self._open = []
            self._final_s = max(self._final_s, message["start"] + message["duration"])
        else:
            self._open = words
        self.finalized = self.finalized or bool(message.get("from_finalize"))


def make_stt(model: str | None, settings: Settings) -> DeepgramSTT:
    """`model`: Deepgram's name of one, nova-3 without. Raises `SetupError` where there is no key."""
    return DeepgramSTT(settings.deepgram_url, deepgram_key(settings), model or DEFAULT_MODEL, settings.language)
