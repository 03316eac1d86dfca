"""POST /v1/realtime/calls: the Realtime protocol over WebRTC. Speech goes as Opus, events over ``oai-events``."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
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
from echosight.routes.auth import body_of, manager_of, settings_of, token_of
from echosight.routes.client_secrets import ClientSecret
from echosight.routes.openai_errors import OpenAIErrorRoute
from echosight.routes.playout import FRAME_SAMPLES, RATE, PlayoutBuffer
from echosight.routes.realtime import asks_for_beta, desk_of, wire_of
from echosight.server.manager import StreamManager
from echosight.session.session import Session
from echosight.wire.fields import read_json
from echosight.wire.realtime import RealtimeWire

CHANNEL = "oai-events"

router = APIRouter(tags=["Realtime"], route_class=OpenAIErrorRoute)


class Call:
    """One peer connection and its session, from the offer until either side ends it."""

    def __init__(self, peer: Any, manager: StreamManager, key: str, session: Session, wire: RealtimeWire) -> None:
        self.id = new_id("rtc")
        self._peer = peer
        self._manager = manager
        self._key = key
        self._session = session
        self._wire = wire
        self._channel: Any = None
        self._opened, self._over = asyncio.Event(), asyncio.Event()
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._speaker = PlayoutBuffer(self._tell_of_playing, self._played)
        self._spoken: dict[str, str] = {}
        """Turns that are being played -> the items that they speak."""
        peer.on("datachannel", self._channel_opened)
        peer.on("track", self._track_opened)
        peer.on("connectionstatechange", self._state_changed)
        self._track: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def answer(self, sdp: str) -> str:
        """Our description for the client's. Raises `InputError` where it is none."""
        from aiortc import RTCSessionDescription  # type: ignore[import-not-found, unused-ignore]

        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            self._peer.addTrack(_track_of(self._speaker))
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except Exception as error:
            # aiortc raises whatever a broken description provokes.
            raise InputError("The SDP offer cannot be answered", code="invalid_offer", param="sdp") from error
        answered: str = self._peer.localDescription.sdp
        return answered

    async def run(self) -> None:
        """Carry the session until the call is over; then nothing of it is left."""
        work = (self._listen(), self._obey(), self._inform())
        tasks = [asyncio.create_task(w) for w in work]
        try:
            async with self._manager.connect(self._key):
                over = asyncio.create_task(self._over.wait())
                await asyncio.wait([over, *tasks[1:]], return_when=asyncio.FIRST_COMPLETED)
                over.cancel()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._peer.close()
            await self._manager.end(self._key)

    def hang_up(self) -> None:
        self._over.set()

    def _channel_opened(self, channel: Any) -> None:
        if channel.label == CHANNEL:
            self._channel = channel
            channel.on("message", self._messages.put_nowait)
            self._opened.set()

    def _track_opened(self, track: Any) -> None:
        if track.kind == "audio" and not self._track.done():
            self._track.set_result(track)

    def _state_changed(self) -> None:
        if self._peer.connectionState in ("failed", "closed"):
            self._over.set()

    async def _listen(self) -> None:
        """The microphone: Opus frames, decoded to 48 kHz."""
        from aiortc.mediastreams import MediaStreamError  # type: ignore[import-not-found, unused-ignore]

        track = await self._track
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                samples = np.asarray(frame.to_ndarray(), np.int16).reshape(-1)
                pcm = downmix(samples, len(frame.layout.channels)).tobytes()
                await self._session.feed(ev.Audio(AudioChunk(pcm, frame.sample_rate)))

    async def _obey(self) -> None:
        """The client's events."""
        while True:
            message = await self._messages.get()
            try:
                if _is_clear(message):
                    await self._session.stop()
                    self._speaker.clear()
                    continue
                for event in await self._read(message):
                    await self._session.feed(event)
            except InputError as error:
                self._session.report_error(
                    ev.ErrorRaised(error.code, error.message, error.param, self._wire.client_event_id)
                )

    async def _read(self, message: str | bytes) -> list[ev.Input]:
        return await self._manager.read(len(message), lambda: list(self._wire.receive(message)))

    async def _inform(self) -> None:
        """Everything that is told; speech goes to the loudspeaker."""
        await self._opened.wait()
        async for event in self._session.events():
            match event:
                case ev.SpeechDelta(turn, item_id, chunk):
                    self._spoken[turn] = item_id
                    self._speaker.say(turn, chunk.pcm)
                case ev.ResponseEnded(turn, outcome):
                    self._speaker.end(turn)
                    if outcome == "cancelled":
                        self._speaker.clear(turn)
                case ev.ItemTruncated(item_id):
                    for turn in [turn for turn, item in self._spoken.items() if item == item_id]:
                        self._speaker.clear(turn)
                case _:
                    pass
            for message in self._wire.send(event):
                self._send(message)

    def _played(self, turn: str, ms: float) -> None:
        """The session need not guess how much was heard."""
        self._session.report_played(self._spoken[turn], ms)

    def _tell_of_playing(self, what: str, turn: str) -> None:
        if what != "started":
            self._spoken.pop(turn, None)
        self._send(self._wire.replay.add({"type": f"output_audio_buffer.{what}", "response_id": turn}))

    def _send(self, message: str | bytes) -> None:
        if self._channel is not None and self._channel.readyState == "open":
            self._channel.send(message)


def _is_clear(message: str | bytes) -> bool:
    """Whether it is ``output_audio_buffer.clear``, which is about the loudspeaker and no business of the session."""
    if not isinstance(message, str) or "output_audio_buffer.clear" not in message:
        return False
    with contextlib.suppress(WireError):
        body = read_json(message)
        return isinstance(body, dict) and body.get("type") == "output_audio_buffer.clear"
    return False


def _track_of(speaker: PlayoutBuffer) -> Any:
    """The loudspeaker as a track, paced by the clock."""
    from aiortc import MediaStreamTrack  # type: ignore[import-not-found, unused-ignore]
    from av import AudioFrame  # type: ignore[import-not-found, unused-ignore]

    class Track(MediaStreamTrack):  # type: ignore[misc, unused-ignore]
        kind = "audio"

        def __init__(self) -> None:
            super().__init__()
            self._began: float | None = None
            self._samples = 0

        async def recv(self) -> Any:
            now = time.monotonic()
            self._began = now if self._began is None else self._began
            await asyncio.sleep(self._began + self._samples / RATE - now)
            frame = AudioFrame(format="s16", layout="mono", samples=FRAME_SAMPLES)
            frame.planes[0].update(speaker.frame())
            frame.pts, frame.sample_rate, frame.time_base = self._samples, RATE, Fraction(1, RATE)
            self._samples += FRAME_SAMPLES
            return frame

    return Track()


# --- routes -----------------------------------------------------------------------------------------


@router.post("/v1/realtime", status_code=201, include_in_schema=False)
@router.post("/v1/realtime/calls", status_code=201)
async def calls(request: Request) -> Response:
    """Answer an SDP offer: raw ``application/sdp``, or a form with ``sdp`` and ``session``.

    Beta clients know it by the shorter path.
    """
    try:
        from aiortc import RTCPeerConnection  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        missing = SetupError("WebRTC needs aiortc: uv sync --extra webrtc")
        raise InputError(missing.message, code="unsupported", status=501) from error
    token = token_of(request)
    secret = desk_of(request).secrets.find(token)
    if secret is None and not settings_of(request).admits(token):
        raise InputError("Incorrect API key provided.", code="invalid_api_key", status=401)
    sdp, chosen = await _offer(request)
    manager, wire = manager_of(request), _wire(request, secret, chosen)
    key = f"call/{hashlib.sha256(new_id('key').encode()).hexdigest()}"
    session = await manager.open(key, wire.opening_options())
    wire.conversation = session.conversation
    peer = RTCPeerConnection()
    call = Call(peer, manager, key, session, wire)
    try:
        answer = await call.answer(sdp)
    except InputError:
        await peer.close()
        await manager.end(key)
        raise
    running = _calls(request)
    task = asyncio.create_task(call.run(), name=call.id)
    running[call.id] = (call, task)
    task.add_done_callback(lambda _: running.pop(call.id, None))
    return Response(answer, 201, {"Location": f"/v1/realtime/calls/{call.id}"}, "application/sdp")


def _wire(request: Request, secret: ClientSecret | None, chosen: dict[str, Any] | None) -> RealtimeWire:
    """The dialect of a call, with what its form chooses beforehand too. Raises `WireError`."""
    beta = request.url.path == "/v1/realtime" or asks_for_beta(request)
    wire = wire_of(request, secret, manager_of(request).live_options(), beta=beta, media_sample_rate=RATE)
    if chosen is not None:
        wire.configure(chosen if beta else {"type": "realtime", **chosen}, flat=beta)
    return wire


@router.post("/v1/realtime/calls/{call_id}/hangup")
async def hangup(request: Request, call_id: str) -> Response:
    """End a call. Whoever knows its id was given it."""
    found = _calls(request).get(call_id)
    if found is None:
        raise InputError("No such call", code="not_found", status=404, param="call_id")
    found[0].hang_up()
    await asyncio.wait([found[1]])
    return Response(status_code=200)


def _calls(request: Request) -> dict[str, tuple[Call, asyncio.Task[None]]]:
    return desk_of(request).calls


async def _offer(request: Request) -> tuple[str, dict[str, Any] | None]:
    """The SDP and, in a form, the session that goes with it."""
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
