"""Drives `livekit-plugins-openai` by its RealtimeModel: drive_livekit.py URL SPEECH SCENARIO."""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path
from typing import Any

from livekit import rtc
from livekit.agents import function_tool, llm
from livekit.plugins.openai.realtime import RealtimeModel, RealtimeSession
from openai.types.beta.realtime.session import TurnDetection
from openai.types.realtime import ConversationCreatedEvent, RealtimeServerEvent
from pydantic import TypeAdapter
from scenarios import PIECE, PNG, SILENCE, STORY, Event, said

SERVER_VAD = TurnDetection(type="server_vad", silence_duration_ms=400)
READ: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


@function_tool
async def get_weather(place: str) -> str:
    """The weather of a place."""
    return "rain until noon"


class Talk:
    """A session that remembers the events it got; one that it calls an error ends it."""

    def __init__(self, session: RealtimeSession, speech: bytes) -> None:
        self.session = session
        self.speech = speech
        self.seen: list[Event] = []
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._errors: list[Any] = []
        self.generations: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()
        session.on("openai_server_event_received", self._events.put_nowait)
        session.on("generation_created", self.generations.put_nowait)
        session.on("error", self._failed)

    def _failed(self, error: Any) -> None:
        self._events.put_nowait({"type": "error", "error": str(error)})

    async def until(self, name: str) -> Event:
        while True:
            event = await self._events.get()
            assert event["type"] != "error", event
            assert not isinstance(READ.validate_python(event), ConversationCreatedEvent), event
            self.seen.append(event)
            if event["type"] == name:
                return event

    async def done(self) -> Event:
        response: Event = (await self.until("response.done"))["response"]
        return response

    def say(self, pcm: bytes) -> None:
        for at in range(0, len(pcm), PIECE):
            piece = pcm[at : at + PIECE]
            self.session.push_audio(rtc.AudioFrame(piece, 24_000, 1, len(piece) // 2))

    async def write(self, *content: Any) -> None:
        chat = self.session.chat_ctx.copy()
        chat.add_message(role="user", content=list(content))
        await self.session.update_chat_ctx(chat)


async def text(talk: Talk) -> None:
    await talk.write("good morning")
    generation = await talk.session.generate_reply()
    assert "good morning" in said(await talk.done())
    async for message in generation.message_stream:
        heard = [frame async for frame in message.audio_stream]
        assert sum(frame.samples_per_channel for frame in heard) > 24_000


async def server_vad(talk: Talk) -> None:
    talk.say(talk.speech + SILENCE)
    assert (await talk.done())["status"] == "completed"
    assert not (await talk.generations.get()).user_initiated


async def manual(talk: Talk) -> None:
    talk.say(talk.speech)
    talk.session.commit_audio()
    await talk.until("conversation.item.done")
    await talk.session.generate_reply()
    assert (await talk.done())["status"] == "completed"


async def barge_in(talk: Talk) -> None:
    talk.say(talk.speech + SILENCE)
    delta = await talk.until("response.output_audio.delta")
    talk.say(talk.speech + SILENCE)
    assert (await talk.done())["status_details"]["reason"] == "turn_detected"
    talk.session.truncate(message_id=delta["item_id"], modalities=["audio"], audio_end_ms=100)
    await talk.until("conversation.item.truncated")
    assert (await talk.done())["status"] == "completed"


async def tool(talk: Talk) -> None:
    await talk.session.update_tools([get_weather])
    await talk.write("how is the weather")
    generation = await talk.session.generate_reply()
    assert (await talk.done())["output"][0]["name"] == "get_weather"
    (call,) = [call async for call in generation.function_stream]
    chat = talk.session.chat_ctx.copy()
    output = llm.FunctionCallOutput(call_id=call.call_id, name=call.name, output="rain until noon", is_error=False)
    chat.items.append(output)
    await talk.session.update_chat_ctx(chat)
    await talk.session.generate_reply()
    assert "rain until noon" in said(await talk.done())


async def image(talk: Talk) -> None:
    await talk.write(llm.ImageContent(image=f"data:image/png;base64,{PNG}"), "look at this")
    await talk.session.generate_reply()
    assert "red" in said(await talk.done())


async def cancel(talk: Talk) -> None:
    await talk.session.update_instructions(STORY)
    await talk.write("begin")
    await talk.session.generate_reply()
    await talk.until("response.output_audio.delta")
    talk.session.interrupt()
    assert (await talk.done())["status_details"]["reason"] == "client_cancelled"


async def truncate(talk: Talk) -> None:
    await talk.write("one two three four five six seven eight")
    await talk.session.generate_reply()
    response = await talk.done()
    item = response["output"][0]["id"]
    talk.session.truncate(message_id=item, modalities=["audio"], audio_end_ms=1_000)
    await talk.until("conversation.item.truncated")
    talk.session.send_event({"type": "conversation.item.retrieve", "item_id": item})
    kept = said({"output": [(await talk.until("conversation.item.retrieved"))["item"]]})
    assert said(response).startswith(kept)
    assert 0 < len(kept) < len(said(response))


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
    assert base64.b64decode(PNG)
    turns = None if scenario == "manual turn" else SERVER_VAD
    async with RealtimeModel(base_url=f"{url}/v1", api_key="none", turn_detection=turns) as model:
        session = model.session()
        talk = Talk(session, Path(speech).read_bytes())
        async with asyncio.timeout(40):
            if scenario == "barge-in":
                await session.update_instructions(STORY)
            await talk.until("session.updated")
            await SCENARIOS[scenario](talk)
        await session.aclose()


asyncio.run(main(*sys.argv[1:]))
