"""Drives the `openai-agents` package by its RealtimeRunner: drive_openai_agents.py URL SPEECH SCENARIO."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSession
from agents.realtime.model_inputs import RealtimeModelSendRawMessage
from scenarios import PIECE, PNG, SILENCE, STORY, Event, said

SERVER_VAD = {"type": "server_vad", "silence_duration_ms": 400, "interrupt_response": True, "create_response": True}


@function_tool
def get_weather(place: str) -> str:
    """The weather of a place."""
    assert place == "here"
    return "rain until noon"


class Talk:
    """A session that remembers the frames it got. Whatever the package could not read ends it."""

    def __init__(self, session: RealtimeSession, speech: bytes) -> None:
        self.session = session
        self.speech = speech
        self._events = session.__aiter__()
        self.seen: list[Event] = []

    async def until(self, name: str) -> Event:
        while True:
            event: Any = await anext(self._events)
            assert event.type != "error", event.error
            if event.type != "raw_model_event":
                continue
            data = event.data
            assert data.type not in ("exception", "error"), data
            if data.type == "raw_server_event":
                self.seen.append(data.data)
                if data.data["type"] == name:
                    return dict(data.data)

    async def done(self) -> Event:
        response: Event = (await self.until("response.done"))["response"]
        return response

    async def say(self, pcm: bytes, commit: bool = False) -> None:
        for at in range(0, len(pcm), PIECE):
            await self.session.send_audio(pcm[at : at + PIECE], commit=commit and at + PIECE >= len(pcm))

    async def respond(self) -> None:
        await self.session.model.send_event(RealtimeModelSendRawMessage({"type": "response.create"}))


async def text(talk: Talk) -> None:
    await talk.session.send_message("good morning")
    assert "good morning" in said(await talk.done())


async def server_vad(talk: Talk) -> None:
    await talk.say(talk.speech + SILENCE)
    assert (await talk.done())["status"] == "completed"
    assert "input_audio_buffer.speech_stopped" in [event["type"] for event in talk.seen]


async def manual(talk: Talk) -> None:
    await talk.say(talk.speech, commit=True)
    await talk.until("conversation.item.done")
    await talk.respond()
    assert (await talk.done())["status"] == "completed"


async def barge_in(talk: Talk) -> None:
    await talk.say(talk.speech + SILENCE)
    await talk.until("response.output_audio.delta")
    await talk.say(talk.speech + SILENCE)
    response = await talk.done()
    assert response["status_details"]["reason"] == "turn_detected"
    # Since the speaker in this test is the package's own clock, it asks for truncation by itself.
    names = [event["type"] for event in talk.seen]
    if "conversation.item.truncated" not in names:
        await talk.until("conversation.item.truncated")
    assert (await talk.done())["status"] == "completed"


async def tool(talk: Talk) -> None:
    await talk.session.send_message("how is the weather")
    assert (await talk.done())["output"][0]["name"] == "get_weather"
    assert "rain until noon" in said(await talk.done())


async def image(talk: Talk) -> None:
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}
    content = [{"type": "input_text", "text": "look at this"}, picture]
    await talk.session.send_message({"type": "message", "role": "user", "content": content})  # type: ignore[typeddict-item]
    assert "red" in said(await talk.done())


async def cancel(talk: Talk) -> None:
    await talk.session.send_message("begin")
    await talk.until("response.output_audio.delta")
    await talk.session.interrupt()
    assert (await talk.done())["status_details"]["reason"] == "client_cancelled"


async def truncate(talk: Talk) -> None:
    await talk.session.send_message("one two three four five six seven eight")
    response = await talk.done()
    await talk.session.interrupt()
    await talk.until("conversation.item.truncated")
    kept = (await talk.until("conversation.item.retrieved"))["item"]
    assert said(response).startswith(said({"output": [kept]}))
    assert len(said({"output": [kept]})) < len(said(response))


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


async def main(url: str, speech: str, scenario: str) -> None:
    agent = RealtimeAgent(
        name="tester",
        instructions=STORY if scenario in ("barge-in", "cancel") else "",
        tools=[get_weather] if scenario == "tool call" else [],
    )
    settings: dict[str, Any] = {"turn_detection": SERVER_VAD}
    if scenario == "manual turn":
        settings = {"audio": {"input": {"turn_detection": None}}}
    config: Any = {
        "url": f"{url.replace('http', 'ws', 1)}/v1/realtime",
        "api_key": "none",
        "initial_model_settings": settings,
    }
    session = await RealtimeRunner(agent).run(model_config=config)
    async with asyncio.timeout(40), session:
        await SCENARIOS[scenario](Talk(session, Path(speech).read_bytes()))


asyncio.run(main(*sys.argv[1:]))
