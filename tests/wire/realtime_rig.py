"""A Realtime client without a socket: its messages go through the wire into a session, and events come back."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

import orjson

from echosight import events as ev
from echosight.errors import InputError
from echosight.options import SessionOptions, TurnDetectionOptions
from echosight.wire.realtime import RealtimeWire, SessionTemplate
from tests.fakes import ScriptedEngine
from tests.rig import Bench, bench

Json = dict[str, Any]

LOUD, QUIET = b"\x10\x10", b"\x00\x00"


def pcm(ms: int, sample: bytes = LOUD) -> str:
    """Base64 of PCM16 at 24 kHz."""
    return base64.b64encode(sample * (24 * ms)).decode()


class Client:
    """Sends client events and reads server events."""

    def __init__(self, session_bench: Bench, wire: RealtimeWire) -> None:
        self.bench = session_bench
        self.wire = wire
        self.seen: list[Json] = []
        self._unread: list[Json] = []

    @property
    def engine(self) -> ScriptedEngine:
        return self.bench.engine

    async def send(self, type_: str, **body: Any) -> None:
        await self.send_raw(orjson.dumps({"type": type_, **body}).decode())

    async def send_raw(self, message: str | bytes) -> None:
        """As `echosight.server.transport` does it."""
        try:
            for event in self.wire.receive(message):
                await self.bench.session.feed(event)
        except InputError as error:
            self.bench.session.report_error(
                ev.ErrorRaised(error.code, error.message, error.param, self.wire.client_event_id)
            )

    async def receive(self) -> Json:
        while not self._unread:
            async with asyncio.timeout(5):
                event = await self.bench.session.next_event()
            assert event is not None
            self._unread += [orjson.loads(message) for message in self.wire.send(event)]
        self.seen.append(self._unread.pop(0))
        return self.seen[-1]

    async def until(self, type_: str) -> Json:
        while (event := await self.receive())["type"] != type_:
            pass
        return event

    async def error(self) -> Json:
        """The next event, which must be an error."""
        event = await self.receive()
        assert event["type"] == "error", event
        error: Json = event["error"]
        return error

    async def done(self) -> Json:
        """The response of the next ``response.done``; reads all events before it."""
        response: Json = (await self.until("response.done"))["response"]
        return response

    async def update(self, **session: Any) -> Json:
        """Change the session in GA; returns the session of ``session.updated``."""
        await self.send("session.update", session={"type": "realtime", **session})
        updated: Json = (await self.until("session.updated"))["session"]
        return updated

    async def write(self, text: str, *, beta: bool = False) -> str:
        """Create an item of typed text; returns its id."""
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        last_event = "conversation.item.created" if beta else "conversation.item.done"
        item_id: str = (await self.until(last_event))["item"]["id"]
        return item_id

    async def hear(self, ms: int, sample: bytes = LOUD) -> None:
        await self.send("input_audio_buffer.append", audio=pcm(ms, sample))

    async def speak(self) -> None:
        """Send a whole turn of speech, for the server to detect."""
        await self.hear(600)
        await self.hear(700, QUIET)

    @property
    def names(self) -> list[str]:
        return [event["type"] for event in self.seen]

    def since(self, type_: str) -> list[str]:
        """The names of the events from the first one of that name on, without repeated deltas."""
        names = self.names[self.names.index(type_) :]
        return [name for i, name in enumerate(names) if not name.endswith(".delta") or name not in names[:i]]


@asynccontextmanager
async def client(
    engine: ScriptedEngine | None = None,
    *,
    beta: bool = False,
    transcription_only: bool = False,
    **options: Any,
) -> AsyncGenerator[Client]:
    """A client whose ``session.created`` was read."""
    template = SessionTemplate(
        model="gpt-realtime", voices=("one", "two"), expires_at=1, transcription_only=transcription_only
    )
    defaults = SessionOptions(**{"turn_detection": TurnDetectionOptions(min_endpointing_delay_ms=384), **options})
    wire = RealtimeWire(template, defaults, beta=beta)
    opening = wire.opening_options()
    async with bench(
        engine, **{field.name: getattr(opening, field.name) for field in fields(opening)}
    ) as session_bench:
        wire.conversation = session_bench.session.conversation
        talker = Client(session_bench, wire)
        await talker.until("session.created")
        yield talker
