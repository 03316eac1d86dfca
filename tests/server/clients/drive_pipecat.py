"""Drives `pipecat-ai` by a pipeline around its OpenAIRealtimeLLMService: drive_pipecat.py URL SPEECH SCENARIO."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from pipecat.adapters.schemas.function_schema import FunctionSchema
from pipecat.adapters.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    CancelFrame,
    ErrorFrame,
    InputAudioRawFrame,
    InputImageRawFrame,
    InterruptionFrame,
    LLMRunFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from scenarios import PIECE, PNG, SILENCE, STORY, TOOL, Event, said

PASSED_OVER = {"rate_limits.updated"}
"""Events that this package has no model for, and drops."""


class Talk:
    """A running pipeline; the events its service read, as they were read."""

    def __init__(self, task: PipelineTask, events_read: asyncio.Queue[Event], speech: bytes) -> None:
        self.task = task
        self.speech = speech
        self.seen: list[Event] = []
        self._events = events_read

    async def until(self, name: str) -> Event:
        while True:
            event = await self._events.get()
            assert event["type"] != "error", event
            self.seen.append(event)
            if event["type"] == name:
                return event

    async def done(self) -> Event:
        response: Event = (await self.until("response.done"))["response"]
        return response

    async def say(self, pcm: bytes) -> None:
        for at in range(0, len(pcm), PIECE):
            await self.task.queue_frame(InputAudioRawFrame(pcm[at : at + PIECE], 24_000, 1))


async def text(talk: Talk) -> None:
    await talk.task.queue_frame(LLMRunFrame())
    assert "good morning" in said(await talk.done())


async def server_vad(talk: Talk) -> None:
    # This package begins a conversation itself, and leaves it to the server from then on.
    await talk.task.queue_frame(LLMRunFrame())
    await talk.done()
    await talk.say(talk.speech + SILENCE)
    assert (await talk.done())["status"] == "completed"


async def manual(talk: Talk) -> None:
    await talk.say(talk.speech)
    await talk.task.queue_frame(UserStoppedSpeakingFrame())
    assert (await talk.done())["status"] == "completed"


async def barge_in(talk: Talk) -> None:
    await talk.task.queue_frame(LLMRunFrame())
    await talk.until("response.output_audio.delta")
    await talk.say(talk.speech + SILENCE)
    assert (await talk.done())["status_details"]["reason"] == "turn_detected"
    assert (await talk.done())["status"] == "completed"
    assert "conversation.item.truncated" in [event["type"] for event in talk.seen]


async def tool(talk: Talk) -> None:
    await talk.task.queue_frame(LLMRunFrame())
    assert (await talk.done())["output"][0]["name"] == "get_weather"
    assert "rain until noon" in said(await talk.done())


async def image(talk: Talk) -> None:
    picture = Image.open(io.BytesIO(base64.b64decode(PNG))).convert("RGB").resize((64, 64))
    await talk.task.queue_frame(InputImageRawFrame(picture.tobytes(), picture.size, "RGB"))
    await talk.until("conversation.item.done")
    await talk.say(talk.speech + SILENCE)
    assert "red" in said(await talk.done())


async def cancel(talk: Talk) -> None:
    await talk.task.queue_frame(LLMRunFrame())
    await talk.until("response.output_audio.delta")
    await talk.task.queue_frame(InterruptionFrame())
    assert (await talk.done())["status_details"]["reason"] == "client_cancelled"


async def truncate(talk: Talk) -> None:
    await talk.task.queue_frame(LLMRunFrame())
    await talk.done()
    await talk.task.queue_frame(InterruptionFrame())
    assert (await talk.until("conversation.item.truncated"))["audio_end_ms"] >= 0


SCENARIOS = {
    "text turn": text,
    "server VAD turn": server_vad,
    "manual turn": manual,
    "barge-in": barge_in,
    "tool call": tool,
    "image": image,
    "cancel": cancel,
    "truncate": truncate,
}
TYPED = {
    "text turn": "good morning",
    "server VAD turn": "hello",
    "barge-in": "begin",
    "tool call": "how is the weather",
    "cancel": "begin",
    "truncate": "one two three four five six seven eight",
}


def listen() -> asyncio.Queue[Event]:
    """The events that the package reads, each by a model of its own."""
    found: asyncio.Queue[Event] = asyncio.Queue()
    read: Callable[[str], Any] = events.parse_server_event

    def parse(message: str) -> Any:
        event = json.loads(message)
        parsed = read(message)
        if parsed is None and event["type"] not in PASSED_OVER:
            event = {"type": "error", "unknown": event["type"]}
        found.put_nowait(event)
        return parsed

    events.parse_server_event = parse
    return found


def service(url: str, scenario: str) -> OpenAIRealtimeLLMService:
    turns: Any = events.TurnDetection(type="server_vad", silence_duration_ms=400)
    if scenario in ("manual turn", "cancel"):
        turns = False
    heard = events.AudioInput(turn_detection=turns, transcription=events.InputAudioTranscription())
    properties = events.SessionProperties(
        audio=events.AudioConfiguration(input=heard), instructions=STORY if scenario in ("barge-in", "cancel") else None
    )
    settings = OpenAIRealtimeLLMService.Settings(session_properties=properties)
    llm = OpenAIRealtimeLLMService(
        api_key="none", base_url=f"{url.replace('http', 'ws', 1)}/v1/realtime", settings=settings
    )

    async def get_weather(call: Any) -> None:
        await call.result_callback("rain until noon")

    llm.register_function("get_weather", get_weather)
    return llm


async def main(url: str, speech: str, scenario: str) -> None:
    found = listen()
    llm = service(url, scenario)
    messages: Any = [{"role": "user", "content": TYPED[scenario]}] if scenario in TYPED else []
    schema = FunctionSchema("get_weather", TOOL["description"], TOOL["parameters"]["properties"], ["place"])
    tools: Any = {"tools": ToolsSchema([schema])} if scenario == "tool call" else {}
    aggregators = LLMContextAggregatorPair(LLMContext(messages, **tools))
    task = PipelineTask(Pipeline([aggregators.user(), llm, aggregators.assistant()]))

    @task.event_handler("on_pipeline_error")
    async def failed(_: PipelineTask, frame: ErrorFrame) -> None:
        found.put_nowait({"type": "error", "error": frame.error})

    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))
    talk = Talk(task, found, Path(speech).read_bytes())
    try:
        async with asyncio.timeout(40):
            await talk.until("session.updated")
            await SCENARIOS[scenario](talk)
    finally:
        await task.queue_frame(CancelFrame())
        await running


asyncio.run(main(*sys.argv[1:]))
