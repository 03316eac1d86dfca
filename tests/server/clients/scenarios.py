"""Scenarios for every client of the Realtime protocol. Standard library only: each client brings its own Python."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

Event = dict[str, Any]

PIECE = 4_800
SILENCE = bytes(48_000 * 2)
STORY = "Tell a long story."
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAIAAAACUFjqAAAAEklEQVR4nGP4z8CAB+GTG8HSALfKY52fTcuYAAAAAElFTkSuQmCC"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}


class Link(Protocol):
    """A client's connection. `send` and `receive` go through the client's own types."""

    beta: bool

    async def send(self, event: Event) -> None: ...
    async def receive(self) -> Event: ...


class Talk:
    """A conversation over a link; `seen` holds all received events. An ``error`` event ends it."""

    def __init__(self, link: Link, speech: Path) -> None:
        self.link = link
        self.speech = speech.read_bytes()
        self.seen: list[Event] = []

    def name(self, ga: str) -> str:
        """The event's name in this connection's dialect."""
        if not self.link.beta:
            return ga
        ga = ga.replace("conversation.item.added", "conversation.item.created")
        return ga.replace("response.output_text", "response.text").replace("response.output_audio", "response.audio")

    async def send(self, type_: str, **fields: Any) -> None:
        await self.link.send({"type": type_, **fields})

    async def until(self, ga: str, **fields: Any) -> Event:
        """Read until an event of that name with these fields."""
        wanted = self.name(ga)
        while True:
            event = await self.link.receive()
            self.seen.append(event)
            assert event["type"] != "error", event
            if event["type"] == wanted and all(event.get(k) == v for k, v in fields.items()):
                return event

    async def done(self) -> Event:
        """The next response that ends."""
        response: Event = (await self.until("response.done"))["response"]
        return response

    async def configure(self, *, turns: Any = None, instructions: str = "", tools: list[Event] | None = None) -> None:
        tools = tools or []
        transcription = {"model": "whisper-1"}
        if self.link.beta:
            session: Event = {"turn_detection": turns, "input_audio_transcription": transcription}
        else:
            heard = {"turn_detection": turns, "transcription": transcription}
            session = {"type": "realtime", "audio": {"input": heard}}
        await self.until("session.created")
        await self.send("session.update", session={**session, "instructions": instructions, "tools": tools})
        await self.until("session.updated")

    async def say(self, pcm: bytes | None = None) -> None:
        pcm = self.speech + SILENCE if pcm is None else pcm
        for start in range(0, len(pcm), PIECE):
            audio = base64.b64encode(pcm[start : start + PIECE]).decode()
            await self.send("input_audio_buffer.append", audio=audio)

    async def write(self, *content: Event) -> None:
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": list(content)})
        await self.until("conversation.item.added")

    def of(self, ga: str) -> list[Event]:
        return [event for event in self.seen if event["type"] == self.name(ga)]

    def spoken(self) -> bytes:
        return b"".join(base64.b64decode(event["delta"]) for event in self.of("response.output_audio.delta"))


SERVER_VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 400}


def said(response: Event) -> str:
    """All text of a response."""
    parts = [part for item in response["output"] for part in item.get("content", [])]
    return " ".join(part.get("transcript") or part.get("text") or "" for part in parts)


async def text(talk: Talk) -> None:
    await talk.configure()
    await talk.write({"type": "input_text", "text": "good morning"})
    await talk.send("response.create")
    response = await talk.done()
    assert response["status"] == "completed"
    assert "good morning" in said(response)
    assert len(talk.spoken()) > 48_000


async def server_vad(talk: Talk) -> None:
    await talk.configure(turns=SERVER_VAD)
    await talk.say()
    response = await talk.done()
    names = [event["type"] for event in talk.seen]
    order = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        talk.name("conversation.item.added"),
        "response.created",
    ]
    places = [names.index(name) for name in order]
    assert places == sorted(places), places
    assert response["status"] == "completed"
    (heard,) = talk.of("conversation.item.input_audio_transcription.completed")
    assert heard["transcript"]
    assert heard["transcript"] in said(response)


async def manual(talk: Talk) -> None:
    await talk.configure(turns=None)
    await talk.say(talk.speech)
    await talk.send("input_audio_buffer.commit")
    await talk.until("conversation.item.added")
    await talk.send("response.create")
    assert (await talk.done())["status"] == "completed"
    assert not talk.of("input_audio_buffer.speech_started")


async def barge_in(talk: Talk) -> None:
    await talk.configure(turns=SERVER_VAD, instructions=STORY)
    await talk.say()
    delta = await talk.until("response.output_audio.delta")
    await talk.say()
    response = await talk.done()
    assert response["status"] == "cancelled"
    assert response["status_details"]["reason"] == "turn_detected"
    assert response["output"][0]["status"] == "incomplete"
    await talk.send("conversation.item.truncate", item_id=delta["item_id"], content_index=0, audio_end_ms=100)
    await talk.until("conversation.item.truncated", item_id=delta["item_id"], audio_end_ms=100)
    assert (await talk.done())["status"] == "completed"


async def tool(talk: Talk) -> None:
    await talk.configure(tools=[TOOL])
    await talk.write({"type": "input_text", "text": "how is the weather"})
    await talk.send("response.create")
    call = await talk.until("response.function_call_arguments.done")
    assert call["arguments"] == '{"place": "here"}'
    response = await talk.done()
    assert response["output"][0]["name"] == "get_weather"
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain until noon"}
    await talk.send("conversation.item.create", item=output)
    await talk.send("response.create")
    assert "rain until noon" in said(await talk.done())


async def image(talk: Talk) -> None:
    await talk.configure()
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}
    await talk.write({"type": "input_text", "text": "look at this"}, picture)
    await talk.send("response.create")
    assert "red" in said(await talk.done())


async def cancel(talk: Talk) -> None:
    await talk.configure(instructions=STORY)
    await talk.write({"type": "input_text", "text": "begin"})
    await talk.send("response.create")
    await talk.until("response.output_audio.delta")
    await talk.send("response.cancel")
    response = await talk.done()
    assert response["status"] == "cancelled"
    assert response["status_details"]["reason"] == "client_cancelled"


async def truncate(talk: Talk) -> None:
    await talk.configure()
    await talk.write({"type": "input_text", "text": "one two three four five six seven eight"})
    await talk.send("response.create")
    response = await talk.done()
    item = response["output"][0]["id"]
    await talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=1_000)
    await talk.until("conversation.item.truncated", item_id=item)
    await talk.send("conversation.item.retrieve", item_id=item)
    kept = (await talk.until("conversation.item.retrieved"))["item"]
    whole, left = said(response), said({"output": [kept]})
    assert left
    assert whole.startswith(left)
    assert len(left) < len(whole)


SCENARIOS: dict[str, Callable[[Talk], Awaitable[None]]] = {
    "text turn": text,
    "server VAD turn": server_vad,
    "manual turn": manual,
    "barge-in": barge_in,
    "tool call": tool,
    "image": image,
    "cancel": cancel,
    "truncate": truncate,
}


async def drive(link: Link, scenario: str, speech: str) -> None:
    """Run a scenario over a link. Raises AssertionError where the server behaves differently."""
    async with asyncio.timeout(40):
        await SCENARIOS[scenario](Talk(link, Path(speech)))
