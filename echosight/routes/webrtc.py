"""POST /v1/realtime/calls: the Realtime protocol over WebRTC. Speech goes as Opus, events over ``oai-events``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from fractions import Fraction
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from echosight import events as ev
from echosight.audio.pcm import downmix
from echosight.conversation import new_id
from echosight.errors import InputError, SetupError, WireError
from echosight.media import AudioChunk
from echosight.routes.auth import client_kind, token_of
from echosight.routes.client_secrets import ClientSecret, client_secrets_of
from echosight.routes.dependencies import body_of, manager_of
from echosight.routes.openai_errors import OpenAIErrorRoute
from echosight.routes.playout import FRAME_SAMPLES, SAMPLE_RATE, PlayoutBuffer
from echosight.routes.realtime import make_wire, require_api_key, wants_beta
from echosight.server.manager import StreamManager
from echosight.server.sessions import Client
from echosight.session.session import Session
from echosight.wire.fields import read_json
from echosight.wire.realtime import RealtimeWire

CHANNEL = "oai-events"

router = APIRouter(tags=["Realtime"], route_class=OpenAIErrorRoute)


class Call:
    """One peer connection and its session, from the offer until either side ends it."""

    def __init__(self, peer: Any, manager: StreamManager, client: Client, session: Session, wire: RealtimeWire) -> None:
        self._peer = peer
        self._manager = manager
        self._client = client
        self._session = session
        self._wire = wire
        self._channel: Any = None
        self._channel_open, self._peer_gone = asyncio.Event(), asyncio.Event()
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._playout = PlayoutBuffer(self._on_playout_state, self._on_playout_progress)
        self._item_of_response: dict[str, str] = {}
        """Responses that are being played -> the items that they speak."""
        peer.on("datachannel", self._on_data_channel)
        peer.on("track", self._on_track)
        peer.on("connectionstatechange", self._on_connection_state)
        self._track: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def answer(self, sdp: str) -> str:
        """The SDP answer to the client's offer. Raises `InputError` where the offer is invalid."""
        from aiortc import RTCSessionDescription  # type: ignore[import-not-found, unused-ignore]

        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            self._peer.addTrack(_make_track(self._playout))
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except Exception as error:
            # aiortc raises exceptions of many kinds for a broken description.
            raise InputError("The SDP offer cannot be answered", code="invalid_offer", param="sdp") from error
        answer: str = self._peer.localDescription.sdp
        return answer

    async def run(self) -> None:
        """Carry the session until the call is over, then close both."""
        receive_audio = asyncio.create_task(self._receive_audio())
        loops = [asyncio.create_task(self._receive_events()), asyncio.create_task(self._send_events())]
        peer_gone = asyncio.create_task(self._peer_gone.wait())
        tasks = [receive_audio, *loops, peer_gone]
        try:
            async with self._manager.sessions.connect(self._client):
                await asyncio.wait([*loops, peer_gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._peer.close()
            await self._manager.sessions.end(self._client.key, "client_closed")

    def _on_data_channel(self, channel: Any) -> None:
        if channel.label == CHANNEL:
            self._channel = channel
            channel.on("message", self._messages.put_nowait)
            self._channel_open.set()

    def _on_track(self, track: Any) -> None:
        if track.kind == "audio" and not self._track.done():
            self._track.set_result(track)

    def _on_connection_state(self) -> None:
        if self._peer.connectionState in ("failed", "closed"):
            self._peer_gone.set()

    async def _receive_audio(self) -> None:
        """The microphone: Opus frames, decoded to 48 kHz."""
        from aiortc.mediastreams import MediaStreamError  # type: ignore[import-not-found, unused-ignore]

        track = await self._track
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                samples = np.asarray(frame.to_ndarray(), np.int16).reshape(-1)
                pcm = downmix(samples, len(frame.layout.channels)).tobytes()
                await self._session.feed(ev.Audio(AudioChunk(pcm, frame.sample_rate)))

    async def _receive_events(self) -> None:
        while True:
            message = await self._messages.get()
            try:
                if _is_clear(message):
                    await self._session.stop()
                    self._playout.clear()
                    continue
                for event in await self._parse(message):
                    await self._session.feed(event)
            except InputError as error:
                self._session.report_error(
                    ev.ErrorRaised(error.code, error.message, error.param, self._wire.client_event_id)
                )

    async def _parse(self, message: str | bytes) -> list[ev.Input]:
        return await self._manager.parse(len(message), lambda: list(self._wire.receive(message)))

    async def _send_events(self) -> None:
        """Events go over the data channel, speech goes to the playout buffer."""
        await self._channel_open.wait()
        for message in self._wire.greet():
            self._send(message)
        async for event in self._session.events():
            match event:
                case ev.SpeechDelta(response_id, item_id, chunk):
                    self._item_of_response[response_id] = item_id
                    self._playout.push(response_id, chunk.pcm)
                case ev.ResponseEnded(response_id, outcome):
                    self._playout.finish(response_id)
                    if outcome == "cancelled":
                        self._playout.clear(response_id)
                case ev.ItemTruncated(item_id):
                    for response_id in [r for r, item in self._item_of_response.items() if item == item_id]:
                        self._playout.clear(response_id)
                case _:
                    pass
            for message in self._wire.send(event):
                self._send(message)

    def _on_playout_progress(self, response_id: str, ms: float) -> None:
        """With a media track the server itself knows how much was played."""
        self._session.report_played(self._item_of_response[response_id], ms)

    def _on_playout_state(self, state: str, response_id: str) -> None:
        if state != "started":
            self._item_of_response.pop(response_id, None)
        self._send(self._wire.replay.add({"type": f"output_audio_buffer.{state}", "response_id": response_id}))

    def _send(self, message: str | bytes) -> None:
        if self._channel is not None and self._channel.readyState == "open":
            self._channel.send(message)


def _is_clear(message: str | bytes) -> bool:
    """Whether it is ``output_audio_buffer.clear``, which the call handles itself and not its session."""
    if not isinstance(message, str) or "output_audio_buffer.clear" not in message:
        return False
    with contextlib.suppress(WireError):
        body = read_json(message)
        return isinstance(body, dict) and body.get("type") == "output_audio_buffer.clear"
    return False


def _make_track(playout: PlayoutBuffer) -> Any:
    """The playout buffer as a media track, paced by the clock."""
    from aiortc import MediaStreamTrack  # type: ignore[import-not-found, unused-ignore]
    from av import AudioFrame  # type: ignore[import-not-found, unused-ignore]

    class PlayoutTrack(MediaStreamTrack):  # type: ignore[misc, unused-ignore]
        kind = "audio"

        def __init__(self) -> None:
            super().__init__()
            self._start: float | None = None
            self._samples = 0

        async def recv(self) -> Any:
            now = time.monotonic()
            self._start = now if self._start is None else self._start
            await asyncio.sleep(self._start + self._samples / SAMPLE_RATE - now)
            frame = AudioFrame(format="s16", layout="mono", samples=FRAME_SAMPLES)
            frame.planes[0].update(playout.next_frame())
            frame.pts, frame.sample_rate, frame.time_base = self._samples, SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            self._samples += FRAME_SAMPLES
            return frame

    return PlayoutTrack()


# --- routes -----------------------------------------------------------------------------------------


@router.post("/v1/realtime", status_code=201, include_in_schema=False)
@router.post("/v1/realtime/calls", status_code=201)
async def calls(request: Request) -> Response:
    """Answer an SDP offer: raw ``application/sdp``, or a form with ``sdp`` and ``session``.

    Beta clients use the shorter path.
    """
    try:
        from aiortc import RTCPeerConnection  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        missing = SetupError("WebRTC needs aiortc: uv sync --extra webrtc")
        raise InputError(missing.message, code="unsupported", status=501) from error
    token = token_of(request)
    secret = client_secrets_of(request).find(token)
    if secret is None:
        require_api_key(request, token)
    sdp, session_json = await _parse_offer(request)
    sessions, wire = manager_of(request).sessions, _make_wire(request, secret, session_json)
    call_id = new_id("rtc")
    client = Client(_key_of_call(call_id), protocol="webrtc", kind=client_kind(request))
    entry = await sessions.open(client, wire.opening_options())
    wire.conversation = entry.session.conversation
    peer = RTCPeerConnection()
    call = Call(peer, manager_of(request), client, entry.session, wire)
    try:
        answer = await call.answer(sdp)
    except InputError:
        await peer.close()
        await sessions.end(client.key, "client_closed")
        raise
    entry.call = asyncio.create_task(call.run(), name=call_id)
    return Response(answer, 201, {"Location": f"/v1/realtime/calls/{call_id}"}, "application/sdp")


def _key_of_call(call_id: str) -> str:
    return f"call/{call_id}"


def _make_wire(request: Request, secret: ClientSecret | None, session_json: dict[str, Any] | None) -> RealtimeWire:
    """The wire of a call, with the session object of its form too. Raises `WireError`."""
    beta = request.url.path == "/v1/realtime" or wants_beta(request)
    options = manager_of(request).live_options()
    wire = make_wire(request, secret, options, beta=beta, media_sample_rate=SAMPLE_RATE)
    if session_json is not None:
        wire.configure(session_json if beta else {"type": "realtime", **session_json}, flat=beta)
    return wire


@router.post("/v1/realtime/calls/{call_id}/hangup")
async def hangup(request: Request, call_id: str) -> Response:
    """End a call. Its id is a secret that only its client knows."""
    sessions = manager_of(request).sessions
    entry = sessions.get(_key_of_call(call_id))
    if entry is None or entry.call is None:
        raise InputError("No such call", code="not_found", status=404, param="call_id")
    await sessions.end(entry.client.key, "client_closed")
    await asyncio.wait([entry.call])
    return Response(status_code=200)


async def _parse_offer(request: Request) -> tuple[str, dict[str, Any] | None]:
    """The SDP and, in a form, the session object that goes with it."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return (await body_of(request)).decode(errors="replace"), None
    async with request.form() as form:
        parts: dict[str, str] = {}
        for name in ("sdp", "session"):
            part = form.get(name)
            if part is not None:
                parts[name] = part if isinstance(part, str) else (await part.read()).decode(errors="replace")
    if "sdp" not in parts:
        raise InputError("Missing required parameter: 'sdp'.", code="missing_required_parameter", param="sdp")
    session = read_json(parts["session"]) if parts.get("session") else None
    if session is not None and not isinstance(session, dict):
        raise WireError("session must be an object", code="invalid_type", param="session")
    return parts["sdp"], session
