"""livekit-agents in one process: an AgentSession on a plain WebSocket, without a LiveKit server."""

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

from benchmarks.workload import SILENCE_MS, STUB_CHUNK
from echosight.engines.stub import STUB_CHUNKS, STUB_TEXT, STUB_TOKEN_S, STUB_TRANSCRIPT

OUTPUT_SAMPLE_RATE = 24_000
app = FastAPI()


class Microphone(AudioInput):
    def __init__(self) -> None:
        super().__init__(label="socket")
        self.frames: Any = utils.aio.Chan()

    async def __anext__(self) -> Any:
        return await self.frames.__anext__()


class SocketOutput(AudioOutput):
    """Sends speech at once, and reports to the session when its playback on the client will have finished."""

    def __init__(self, socket: WebSocket) -> None:
        capabilities = AudioOutputCapabilities(pause=False)
        super().__init__(label="socket", capabilities=capabilities, sample_rate=OUTPUT_SAMPLE_RATE)
        self._socket = socket
        self._seconds = 0.0
        self._started: float | None = None
        self._end: asyncio.TimerHandle | None = None

    async def capture_frame(self, frame: Any) -> None:
        await super().capture_frame(frame)
        if self._started is None:
            self._started = time.time()
            self.on_playback_started(created_at=self._started)
        self._seconds += frame.duration
        await self._socket.send_bytes(bytes(frame.data))

    def flush(self) -> None:
        super().flush()
        if self._started is not None:
            remaining_s = max(0.0, self._started + self._seconds - time.time())
            self._end = asyncio.get_running_loop().call_later(remaining_s, self._finish, False)

    def clear_buffer(self) -> None:
        self._finish(True)

    def _finish(self, interrupted: bool) -> None:
        if self._started is None:
            return
        played = min(self._seconds, time.time() - self._started) if interrupted else self._seconds
        self._seconds, self._started = 0.0, None
        if self._end is not None:
            self._end.cancel()
        self.on_playback_finished(playback_position=played, interrupted=interrupted)


class StubLLM(llm.LLM):
    def chat(self, *, chat_ctx: Any, tools: Any = None, conn_options: Any = None, **_: Any) -> Any:
        return StubLLMStream(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=DEFAULT_API_CONNECT_OPTIONS)


class StubLLMStream(llm.LLMStream):
    async def _run(self) -> None:
        started = time.monotonic()
        for n, word in enumerate(STUB_TEXT.split()):
            await asyncio.sleep(started + (n + 1) * STUB_TOKEN_S - time.monotonic())
            delta = llm.ChoiceDelta(role="assistant", content=f" {word}" if n else word)
            self._event_ch.send_nowait(llm.ChatChunk(id="stub", delta=delta))


class StubTTS(tts.TTS):
    def __init__(self) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False), sample_rate=OUTPUT_SAMPLE_RATE, num_channels=1
        )

    def synthesize(self, text: str, *, conn_options: Any = DEFAULT_API_CONNECT_OPTIONS) -> Any:
        return StubTTSStream(tts=self, input_text=text, conn_options=conn_options)


class StubTTSStream(tts.ChunkedStream):
    async def _run(self, output_emitter: Any) -> None:
        output_emitter.initialize(
            request_id="stub", sample_rate=OUTPUT_SAMPLE_RATE, num_channels=1, mime_type="audio/pcm"
        )
        for _ in range(STUB_CHUNKS):
            output_emitter.push(STUB_CHUNK)
        output_emitter.flush()


class StubSTT(stt.STT):
    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))

    async def _recognize_impl(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("Assistant.stt_node transcribes")


class Assistant(Agent):
    """The transcript is final as soon as the VAD reports the end of speech."""

    def __init__(self) -> None:
        super().__init__(instructions="stub")
        self.speech_ends: asyncio.Queue[None] = asyncio.Queue()

    async def stt_node(self, audio: AsyncIterable[Any], model_settings: Any) -> AsyncIterator[Any]:
        async def drain() -> None:
            async for _ in audio:
                pass

        draining = asyncio.create_task(drain())
        transcript = stt.SpeechData(language="en", text=STUB_TRANSCRIPT.text)
        try:
            while True:
                await self.speech_ends.get()
                yield stt.SpeechEvent(type=stt.SpeechEventType.FINAL_TRANSCRIPT, alternatives=[transcript])
        finally:
            draining.cancel()


VAD = inference.VAD(model="silero", min_silence_duration=SILENCE_MS / 1000)


@app.websocket("/ws")
async def serve_session(socket: WebSocket) -> None:
    await socket.accept()
    session: Any = AgentSession(
        vad=VAD,
        stt=StubSTT(),
        llm=StubLLM(),
        tts=StubTTS(),
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
    session.input.audio, session.output.audio = microphone, SocketOutput(socket)

    @session.on("user_state_changed")
    def on_user_state(event: Any) -> None:
        if event.old_state == "speaking" and event.new_state == "listening":
            assistant.speech_ends.put_nowait(None)

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
