"""livekit-agents in one process: an AgentSession behind a plain WebSocket, without a LiveKit server."""

# mypy: disable-error-code="import-not-found,misc,untyped-decorator"

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from livekit import rtc
from livekit.agents import Agent, AgentSession, inference, llm, stt, tts, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS
from livekit.agents.voice.io import AudioInput, AudioOutput, AudioOutputCapabilities

from benchmarks.workload import PIECE, SILENCE_MS
from echosight.engines.stub import STUB_CHUNKS, STUB_TEXT, STUB_TOKEN_S, STUB_TRANSCRIPT

SPEECH_HZ = 24_000
app = FastAPI()


class Microphone(AudioInput):
    def __init__(self) -> None:
        super().__init__(label="socket")
        self.frames: Any = utils.aio.Chan()

    async def __anext__(self) -> Any:
        return await self.frames.__anext__()


class PlayoutBuffer(AudioOutput):
    """Sends at once, for the client plays; tells the session when that would be over, as is asked of a sink."""

    def __init__(self, socket: WebSocket) -> None:
        capabilities = AudioOutputCapabilities(pause=False)
        super().__init__(label="socket", capabilities=capabilities, sample_rate=SPEECH_HZ)
        self._socket = socket
        self._seconds = 0.0
        self._began: float | None = None
        self._end: asyncio.TimerHandle | None = None

    async def capture_frame(self, frame: Any) -> None:
        await super().capture_frame(frame)
        if self._began is None:
            self._began = time.time()
            self.on_playback_started(created_at=self._began)
        self._seconds += frame.duration
        await self._socket.send_bytes(bytes(frame.data))

    def flush(self) -> None:
        super().flush()
        if self._began is not None:
            left = max(0.0, self._began + self._seconds - time.time())
            self._end = asyncio.get_running_loop().call_later(left, self._finish, False)

    def clear_buffer(self) -> None:
        self._finish(True)

    def _finish(self, interrupted: bool) -> None:
        if self._began is None:
            return
        played = min(self._seconds, time.time() - self._began) if interrupted else self._seconds
        self._seconds, self._began = 0.0, None
        if self._end is not None:
            self._end.cancel()
        self.on_playback_finished(playback_position=played, interrupted=interrupted)


class Thinker(llm.LLM):
    def chat(self, *, chat_ctx: Any, tools: Any = None, conn_options: Any = None, **_: Any) -> Any:
        return Thought(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=DEFAULT_API_CONNECT_OPTIONS)


class Thought(llm.LLMStream):
    async def _run(self) -> None:
        began = time.monotonic()
        for n, word in enumerate(STUB_TEXT.split()):
            await asyncio.sleep(began + (n + 1) * STUB_TOKEN_S - time.monotonic())
            delta = llm.ChoiceDelta(role="assistant", content=f" {word}" if n else word)
            self._event_ch.send_nowait(llm.ChatChunk(id="stub", delta=delta))


class Speaker(tts.TTS):
    def __init__(self) -> None:
        super().__init__(capabilities=tts.TTSCapabilities(streaming=False), sample_rate=SPEECH_HZ, num_channels=1)

    def synthesize(self, text: str, *, conn_options: Any = DEFAULT_API_CONNECT_OPTIONS) -> Any:
        return Speech(tts=self, input_text=text, conn_options=conn_options)


class Speech(tts.ChunkedStream):
    async def _run(self, output_emitter: Any) -> None:
        output_emitter.initialize(request_id="stub", sample_rate=SPEECH_HZ, num_channels=1, mime_type="audio/pcm")
        for _ in range(STUB_CHUNKS):
            output_emitter.push(PIECE)
        output_emitter.flush()


class Transcriber(stt.STT):
    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))

    async def _recognize_impl(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("the agent's own node transcribes")


class Assistant(Agent):
    """Its transcript is final as soon as the detector says that the user stopped."""

    def __init__(self) -> None:
        super().__init__(instructions="stub")
        self.stops: asyncio.Queue[None] = asyncio.Queue()

    async def stt_node(self, audio: AsyncIterable[Any], model_settings: Any) -> AsyncIterator[Any]:
        async def drain() -> None:
            async for _ in audio:
                pass

        draining = asyncio.create_task(drain())
        heard = stt.SpeechData(language="en", text=STUB_TRANSCRIPT.text)
        try:
            while True:
                await self.stops.get()
                yield stt.SpeechEvent(type=stt.SpeechEventType.FINAL_TRANSCRIPT, alternatives=[heard])
        finally:
            draining.cancel()


VAD = inference.VAD(model="silero", min_silence_duration=SILENCE_MS / 1000)


@app.websocket("/ws")
async def converse(socket: WebSocket) -> None:
    await socket.accept()
    session: Any = AgentSession(
        vad=VAD,
        stt=Transcriber(),
        llm=Thinker(),
        tts=Speaker(),
        aec_warmup_duration=None,
        user_away_timeout=None,
        turn_handling={
            "turn_detection": "vad",
            "endpointing": {"min_delay": 0.0, "max_delay": 0.5},
            "interruption": {"mode": "vad"},
            "preemptive_generation": {"enabled": False},
        },
    )
    assistant, microphone = Assistant(), Microphone()
    session.input.audio, session.output.audio = microphone, PlayoutBuffer(socket)

    @session.on("user_state_changed")
    def changed(event: Any) -> None:
        if event.old_state == "speaking" and event.new_state == "listening":
            assistant.stops.put_nowait(None)

    await session.start(assistant)
    try:
        while True:
            pcm = await socket.receive_bytes()
            frame = rtc.AudioFrame(data=pcm, sample_rate=16_000, num_channels=1, samples_per_channel=len(pcm) // 2)
            microphone.frames.send_nowait(frame)
    except (WebSocketDisconnect, RuntimeError):
        pass
    finally:
        microphone.frames.close()
        await session.aclose()


def server(port: int) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
