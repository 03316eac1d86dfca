"""The Realtime protocol over WebRTC, with aiortc on both ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import pytest

from echosight.audio.resampling import resample
from tests.conftest import Flite
from tests.server.serving import Server

aiortc = pytest.importorskip("aiortc")
av = pytest.importorskip("av")

FRAME = 960


class Microphone(aiortc.MediaStreamTrack):  # type: ignore[misc, name-defined, unused-ignore]
    """Plays the PCM16 at 48 kHz that `say` queues, and silence before and after it."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._pcm = b""
        self._sent = 0
        self._began = asyncio.get_running_loop().time()

    def say(self, pcm: bytes) -> None:
        self._pcm += pcm

    async def recv(self) -> Any:
        await asyncio.sleep(self._began + self._sent / 48_000 - asyncio.get_running_loop().time())
        piece, self._pcm = self._pcm[: 2 * FRAME], self._pcm[2 * FRAME :]
        frame = av.AudioFrame(format="s16", layout="mono", samples=FRAME)
        frame.planes[0].update(piece.ljust(2 * FRAME, b"\0"))
        frame.pts, frame.sample_rate, frame.time_base = self._sent, 48_000, Fraction(1, 48_000)
        self._sent += FRAME
        return frame


class Client:
    """The browser's side of a call."""

    def __init__(self, peer: Any) -> None:
        self.microphone = Microphone()
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.seen: list[dict[str, Any]] = []
        self.loudest = 0
        self.channel = peer.createDataChannel("oai-events")
        self.channel.on("message", lambda message: self.events.put_nowait(json.loads(message)))
        peer.addTrack(self.microphone)
        peer.on("track", lambda track: setattr(self, "listening", asyncio.create_task(self._listen(track))))

    async def _listen(self, track: Any) -> None:
        with contextlib.suppress(aiortc.mediastreams.MediaStreamError):
            while True:
                frame = await track.recv()
                self.loudest = max(self.loudest, int(np.abs(frame.to_ndarray().astype(int)).max()))

    def send(self, **event: Any) -> None:
        self.channel.send(json.dumps(event))

    async def until(self, name: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                event = await self.events.get()
                self.seen.append(event)
                assert event["type"] != "error", event
                if event["type"] == name:
                    return event

    @property
    def names(self) -> list[str]:
        return [event["type"] for event in self.seen]


@asynccontextmanager
async def call(
    server: Server,
    session: dict[str, Any] | None = None,
    path: str = "/v1/realtime/calls",
    key: str = "",
    opened: str = "session.created",
) -> AsyncGenerator[Client]:
    """A call that the server has answered. With `session`, the offer is a form."""
    peer = aiortc.RTCPeerConnection()
    caller = Client(peer)
    try:
        await peer.setLocalDescription(await peer.createOffer())
        offer = peer.localDescription.sdp
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            if session is None:
                headers = {"Content-Type": "application/sdp", **({"Authorization": f"Bearer {key}"} if key else {})}
                answer = await http.post(path, content=offer, headers=headers)
            else:
                form = {"sdp": (None, offer), "session": (None, json.dumps(session))}
                answer = await http.post(path, files=form)
            assert answer.status_code == 201, answer.text
            assert answer.headers["content-type"] == "application/sdp"
            await peer.setRemoteDescription(aiortc.RTCSessionDescription(answer.text, "answer"))
            await caller.until(opened)
            yield caller
            hung_up = await http.post(f"{answer.headers['location']}/hangup")
            assert hung_up.status_code == 200
            assert (await http.post(f"{answer.headers['location']}/hangup")).status_code == 404
    finally:
        await peer.close()


async def test_a_spoken_turn_gets_a_spoken_response(server: Server, flite: Flite) -> None:
    async with call(server) as caller:
        caller.send(
            type="session.update",
            session={"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}},
        )
        await caller.until("session.updated")
        caller.microphone.say(resample(flite("please open the window"), 48_000).pcm)
        heard = await caller.until("conversation.item.input_audio_transcription.completed")
        assert "open the window" in heard["transcript"]
        started = await caller.until("output_audio_buffer.started")
        stopped = await caller.until("output_audio_buffer.stopped")
        assert started["response_id"] == stopped["response_id"]
        assert caller.loudest > 1_000
        assert "response.output_audio_transcript.delta" in caller.names
        assert "response.output_audio.delta" not in caller.names


async def test_speech_over_a_response_clears_it(server: Server, flite: Flite) -> None:
    async with call(server, {"type": "realtime", "instructions": "be brief"}) as caller:
        assert caller.seen[0]["session"]["instructions"] == "be brief"
        content = [{"type": "input_text", "text": "one two three four five six seven eight nine ten eleven twelve"}]
        caller.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
        caller.send(type="response.create")
        turn = (await caller.until("output_audio_buffer.started"))["response_id"]
        caller.microphone.say(resample(flite("please open the window"), 48_000).pcm)
        cleared = await caller.until("output_audio_buffer.cleared")
        assert cleared["response_id"] == turn
        assert "input_audio_buffer.speech_started" in caller.names
        assert (await caller.until("output_audio_buffer.started"))["response_id"] != turn


async def test_responses_are_played_one_after_the_other(server: Server) -> None:
    async with call(server) as caller:
        for words, response in (
            ("one two three four five six seven", {}),
            ("and this is out of band", {"conversation": "none"}),
        ):
            content = [{"type": "input_text", "text": words}]
            item = {"type": "message", "role": "user", "content": content}
            caller.send(type="response.create", response={"input": [item], **response})
        for _ in range(2):
            await caller.until("output_audio_buffer.stopped")
        played = [event for event in caller.seen if event["type"].startswith("output_audio_buffer")]
        assert [event["type"].rpartition(".")[2] for event in played] == ["started", "stopped"] * 2
        first, _, second, _ = [event["response_id"] for event in played]
        assert first != second
        assert [played[1]["response_id"], played[3]["response_id"]] == [first, second]


async def test_cancelling_a_response_out_of_band_does_not_clear_another_one(server: Server) -> None:
    """It is cancelled while the conversation's response is played."""
    async with call(server) as caller:
        content = [{"type": "input_text", "text": "one two three four five six seven"}]
        item = {"type": "message", "role": "user", "content": content}
        caller.send(type="response.create", response={"input": [item]})
        main = (await caller.until("output_audio_buffer.started"))["response_id"]
        out_of_band = {"conversation": "none", "input": [item], "metadata": {"not": "output_audio_buffer.clear"}}
        caller.send(type="response.create", response=out_of_band)
        created = (await caller.until("response.created"))["response"]
        assert created["metadata"] == out_of_band["metadata"]
        caller.send(type="response.cancel", response_id=created["id"])
        stopped = await caller.until("output_audio_buffer.stopped")
        assert stopped["response_id"] == main
        cleared = [event["response_id"] for event in caller.seen if event["type"] == "output_audio_buffer.cleared"]
        assert main not in cleared


async def test_a_beta_client_can_call(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        session_json = (await http.post("/v1/realtime/sessions", json={"instructions": "flat"})).json()
    async with call(server, path="/v1/realtime", key=session_json["client_secret"]["value"]) as caller:
        session = caller.seen[0]["session"]
        assert (session["instructions"], session["modalities"]) == ("flat", ["text", "audio"])
        content = [{"type": "input_text", "text": "hello"}]
        caller.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await caller.until("conversation.item.created")
        caller.send(type="response.create")
        await caller.until("response.audio_transcript.delta")
        await caller.until("output_audio_buffer.stopped")


async def test_an_invalid_offer_is_refused(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        refused = await http.post("/v1/realtime/calls", content="v=0", headers={"Content-Type": "application/sdp"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_offer")
        refused = await http.post("/v1/realtime/calls", files={"session": (None, "{}")})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "missing_required_parameter")
