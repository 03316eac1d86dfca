"""Drives the `openai` package: drive_openai.py ga|beta URL SPEECH SCENARIO.

Every GA frame must pass the strict models of `openai-agents` too.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from agents.realtime.openai_realtime import get_server_event_type_adapter
from openai import AsyncOpenAI
from openai.types.realtime import ConversationCreatedEvent
from scenarios import Event, drive


class OpenAILink:
    """Sends and receives through the package's own connection and types."""

    def __init__(self, connection: Any, beta: bool) -> None:
        self.beta = beta
        self._connection = connection

    async def send(self, event: Event) -> None:
        await self._connection.send(event)

    async def receive(self) -> Event:
        data = await self._connection.recv_bytes()
        event = self._connection.parse_event(data)
        # An unknown type is silently built as the first member of the union.
        assert event.type == "conversation.created" or type(event).__name__ != ConversationCreatedEvent.__name__, event
        if not self.beta:
            get_server_event_type_adapter().validate_json(data)
        found: Event = event.to_dict(mode="json")
        return found


async def main(dialect: str, url: str, speech: str, scenario: str) -> None:
    client = AsyncOpenAI(api_key="none", base_url=f"{url}/v1", websocket_base_url=f"{url.replace('http', 'ws', 1)}/v1")
    realtime = client.beta.realtime if dialect == "beta" else client.realtime
    async with realtime.connect(model="gpt-realtime") as connection:
        await drive(OpenAILink(connection, dialect == "beta"), scenario, speech)


asyncio.run(main(*sys.argv[1:]))
