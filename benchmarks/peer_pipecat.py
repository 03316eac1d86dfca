"""pipecat: FastAPIWebsocketTransport, SileroVADAnalyzer in the user aggregator, and stub services."""

# mypy: disable-error-code="import-not-found,misc,untyped-decorator"

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import (
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.services.llm_service import LLMService
from pipecat.services.settings import LLMSettings, STTSettings, TTSSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.services.tts_service import TTSService
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.time import time_now_iso8601
from pipecat.workers.runner import WorkerRunner

from benchmarks.workload import SILENCE_MS, STUB_CHUNK
from echosight.engines.stub import STUB_CHUNKS, STUB_TEXT, STUB_TOKEN_S, STUB_TRANSCRIPT

OUTPUT_SAMPLE_RATE = 24_000
app = FastAPI()
logger.remove()
logger.add(sys.stderr, level="WARNING")


class StubSTT(SegmentedSTTService):
    def can_generate_metrics(self) -> bool:
        return True

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Any, None]:
        yield TranscriptionFrame(STUB_TRANSCRIPT.text, self._user_id, time_now_iso8601())


class StubLLM(LLMService):
    def can_generate_metrics(self) -> bool:
        return True

    async def process_frame(self, frame: Any, direction: Any) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            return
        await self.push_frame(LLMFullResponseStartFrame())
        started = time.monotonic()
        for n, word in enumerate(STUB_TEXT.split()):
            await asyncio.sleep(started + (n + 1) * STUB_TOKEN_S - time.monotonic())
            await self.push_frame(LLMTextFrame(f" {word}" if n else word))
        await self.push_frame(LLMFullResponseEndFrame())


class StubTTS(TTSService):
    def can_generate_metrics(self) -> bool:
        return True

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Any, None]:
        for _ in range(STUB_CHUNKS):
            yield TTSAudioRawFrame(STUB_CHUNK, OUTPUT_SAMPLE_RATE, 1, context_id=context_id)


LLM_DEFAULTS: dict[str, Any] = dict.fromkeys(
    (
        "system_instruction",
        "temperature",
        "max_tokens",
        "top_p",
        "top_k",
        "frequency_penalty",
        "presence_penalty",
        "seed",
        "user_turn_completion_config",
    )
)


@app.websocket("/ws")
async def serve_session(websocket: WebSocket) -> None:
    await websocket.accept()
    parameters = FastAPIWebsocketParams(
        audio_in_enabled=True, audio_out_enabled=True, serializer=ProtobufFrameSerializer()
    )
    transport = FastAPIWebsocketTransport(websocket=websocket, params=parameters)
    settings = LLMSettings(model="stub", filter_incomplete_user_turns=False, **LLM_DEFAULTS)
    turns = LLMUserAggregatorParams(
        vad_analyzer=SileroVADAnalyzer(
            params=VADParams(confidence=0.5, start_secs=0.2, stop_secs=SILENCE_MS / 1000, min_volume=0.0)
        ),
        user_turn_strategies=UserTurnStrategies(stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.0)]),
    )
    user, assistant = LLMContextAggregatorPair(LLMContext(), user_params=turns)
    services = [
        StubSTT(ttfs_p99_latency=0.0, settings=STTSettings(model="stub", language=None)),
        user,
        StubLLM(settings=settings),
        StubTTS(
            push_start_frame=True,
            push_stop_frames=True,
            sample_rate=OUTPUT_SAMPLE_RATE,
            settings=TTSSettings(model="stub", voice="stub", language=None),
        ),
    ]
    pipeline = Pipeline([transport.input(), *services, transport.output(), assistant])
    rates = PipelineParams(audio_in_sample_rate=16_000, audio_out_sample_rate=OUTPUT_SAMPLE_RATE)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(PipelineWorker(pipeline, params=rates, idle_timeout_secs=None))

    @transport.event_handler("on_client_disconnected")
    async def on_disconnected(*_: Any) -> None:
        await runner.cancel()

    await runner.run()


def server(port: int) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
