"""/v1/realtime on a real server: keys, resuming, and input that no client should send."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from echosight.audio.resampling import resample
from echosight.routes.client_secrets import ClientSecretStore
from tests.conftest import Flite
from tests.server.serving import Serve, Server, running

Json = dict[str, Any]
TOKEN = "sesame"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with tokens and with defaults for bridge clients."""
    variables: dict[str, Any] = {
        "API_TOKENS": f"other,{TOKEN}",
        "DEFAULT_SYSTEM_PROMPT": "be kind",
        "DEFAULT_VAD_END_MS": "320",
        "DEFAULT_VAD_INTERRUPT_RESPONSE": "yes",
        "DEFAULT_VAD_AUTORESP": "off",
    }
    with running(tmp_path_factory.mktemp("guarded"), "--model", "stub", **variables) as server:
        yield server


class Talk:
    """A raw client."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[Json] = []

    async def send(self, type_: str, **fields: Any) -> None:
        await self.socket.send(orjson.dumps({"type": type_, **fields}).decode())

    async def until(self, type_: str) -> Json:
        async with asyncio.timeout(20):
            while True:
                event: Json = orjson.loads(await self.socket.recv())
                self.seen.append(event)
                if event["type"] == type_:
                    return event

    async def ask(self, text: str) -> None:
        content = [{"type": "input_text", "text": text}]
        await self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await self.send("response.create")

    async def answer(self) -> str:
        """The transcript of the next completed response."""
        response = (await self.until("response.done"))["response"]
        assert response["status"] == "completed", response
        transcript: str = response["output"][0]["content"][0]["transcript"]
        return transcript


@asynccontextmanager
async def talk(server: Server, query: str = "", **options: Any) -> AsyncGenerator[Talk]:
    """A connection whose ``session.created`` was read."""
    async with websockets.connect(f"{server.ws}/v1/realtime{query}", max_size=1 << 25, **options) as socket:
        talker = Talk(socket)
        await talker.until("session.created")
        yield talker


# --- keys -------------------------------------------------------------------------------------------


async def test_keys_come_by_header_query_or_subprotocol(guarded: Server) -> None:
    key = f"openai-insecure-api-key.{TOKEN}"
    async with talk(guarded, additional_headers={"Authorization": f"Bearer {TOKEN}"}):
        pass
    async with talk(guarded, additional_headers={"api-key": TOKEN}):
        pass
    async with talk(guarded, f"?token={TOKEN}"):
        pass
    async with talk(guarded, subprotocols=["realtime", key, "openai-beta.realtime-v1"]) as beta:
        assert beta.socket.subprotocol == "realtime"
        assert "audio" not in beta.seen[0]["session"]
    async with talk(guarded, subprotocols=[key]) as browser:
        assert browser.socket.subprotocol == key
    for wrong in ("", "?token=sesam"):
        async with websockets.connect(f"{guarded.ws}/v1/realtime{wrong}") as socket:
            error = orjson.loads(await socket.recv())["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 3000


async def test_ephemeral_keys_open_the_session_that_they_were_made_for(guarded: Server) -> None:
    async with httpx.AsyncClient(base_url=guarded.url) as http:
        assert (await http.post("/v1/realtime/client_secrets")).status_code == 401
        http.headers["Authorization"] = f"Bearer {TOKEN}"
        session = {"type": "realtime", "instructions": "be brief", "audio": {"output": {"speed": 1.25}}}
        request = {"expires_after": {"anchor": "created_at", "seconds": 60}, "session": session}
        secret = (await http.post("/v1/realtime/client_secrets", json=request)).json()
        assert secret["value"].startswith("ek_")
        assert secret["session"]["instructions"] == "be brief"
        for _ in range(2):
            async with talk(
                guarded, subprotocols=["realtime", f"openai-insecure-api-key.{secret['value']}"]
            ) as browser:
                opened = browser.seen[0]["session"]
                assert (opened["instructions"], opened["audio"]["output"]["speed"]) == ("be brief", 1.25)
        for seconds in (9, 7_201, "60"):
            wrong = {"expires_after": {"anchor": "created_at", "seconds": seconds}}
            assert (await http.post("/v1/realtime/client_secrets", json=wrong)).status_code == 400
        malformed: tuple[Json, ...] = (
            {"session": []},
            {"expires_after": {"anchor": "tomorrow"}},
            {"expires_after": []},
        )
        for request in malformed:
            assert (await http.post("/v1/realtime/client_secrets", json=request)).status_code == 400
        wrong = {"session": {"type": "realtime", "foo": 1}}
        refused = await http.post("/v1/realtime/client_secrets", json=wrong)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_parameter")
        flat = {"instructions": "flat", "voice": "alloy", "modalities": ["text"]}
        secret = (await http.post("/v1/realtime/sessions", json=flat)).json()
        assert (secret["instructions"], secret["modalities"]) == ("flat", ["text"])
        heard = {"input_audio_transcription": {"model": "whisper-1", "language": "de"}}
        only_heard = (await http.post("/v1/realtime/transcription_sessions", json=heard)).json()
    key = secret["client_secret"]["value"]
    async with talk(guarded, subprotocols=["openai-beta.realtime-v1", f"openai-insecure-api-key.{key}"]) as beta:
        assert beta.seen[0]["session"]["modalities"] == ["text"]
    key = only_heard["client_secret"]["value"]
    address, protocols = f"{guarded.ws}/v1/realtime", ["openai-beta.realtime-v1", f"openai-insecure-api-key.{key}"]
    async with websockets.connect(address, subprotocols=protocols) as socket:  # type: ignore[arg-type]
        beta = Talk(socket)
        session = (await beta.until("session.created"))["session"]
        assert session["input_audio_transcription"]["language"] == "de"
        await beta.send("response.create")
        assert (await beta.until("error"))["error"]["message"] == "A transcription session makes no responses."


def test_a_key_works_until_it_expires() -> None:
    now = 1_000.0
    secrets = ClientSecretStore(lambda: now)
    secret = secrets.issue(10, {"type": "realtime"})
    assert secret.expires_at == 1_010
    now = 1_009.9
    assert secrets.find(secret.value) is secrets.find(secret.value) is secret
    now = 1_010.0
    assert secrets.find(secret.value) is None


# --- resuming ---------------------------------------------------------------------------------------


async def test_a_lost_client_gets_what_it_missed(server: Server) -> None:
    async with talk(server) as first:
        session = first.seen[0]["session"]["id"]
        await first.ask("one two three four five six seven eight nine ten")
        await first.until("response.output_audio.delta")
        first.socket.transport.abort()
    last = first.seen[-1]["event_id"]
    query = f"?session={session}&last_event={last}"
    async with websockets.connect(f"{server.ws}/v1/realtime{query}") as socket:
        second = Talk(socket)
        whole = await second.answer()
        assert "session.created" not in [event["type"] for event in second.seen]
        deltas = [event for event in first.seen + second.seen if event["type"].endswith("transcript.delta")]
        assert "".join(event["delta"] for event in deltas) == whole
        numbers = [int(event["event_id"].rpartition("_")[2]) for event in first.seen + second.seen]
        assert numbers == list(range(1, len(numbers) + 1))
        await second.ask("what did i say")
        assert "one two three" in await second.answer()


async def test_a_client_that_was_lost_in_silence_resumes(server: Server) -> None:
    """The server sends nothing meanwhile, so it notices the loss by the broken connection only."""
    async with talk(server) as first:
        session = first.seen[0]["session"]["id"]
        await first.ask("remember the milk")
        await first.until("rate_limits.updated")
        first.socket.transport.abort()
    async with httpx.AsyncClient(base_url=server.url) as http:
        for _ in range(20):  # enough time for the server to notice it
            assert (await http.get("/health")).status_code == 200
    query = f"?session={session}&last_event={first.seen[-1]['event_id']}"
    async with websockets.connect(f"{server.ws}/v1/realtime{query}") as socket:
        second = Talk(socket)
        await second.ask("what did i say")
        assert "remember the milk" in await second.answer()
        assert "session.created" not in [event["type"] for event in second.seen]


async def test_of_many_sockets_that_resume_at_once_the_last_one_stays(server: Server) -> None:
    async with talk(server) as first:
        session, last = first.seen[0]["session"]["id"], first.seen[0]["event_id"]
        address = f"{server.ws}/v1/realtime?session={session}&last_event={last}"
        sockets = await asyncio.gather(*(websockets.connect(address) for _ in range(5)))
        closing = [asyncio.create_task(socket.wait_closed()) for socket in sockets]
        async with asyncio.timeout(20):
            while len([task for task in closing if not task.done()]) > 1:
                await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED)
                closing = [task for task in closing if not task.done()]
        assert {socket.close_code for socket in sockets if socket.close_code is not None} == {4000}
        (left,) = [Talk(socket) for socket in sockets if socket.close_code is None]
        await left.ask("still here")
        assert "still here" in await left.answer()
        async with websockets.connect(address) as socket:
            assert "still here" in await Talk(socket).answer()
            await left.socket.wait_closed()
            assert left.socket.close_code == 4000
        for task in closing:
            await task


async def test_a_second_socket_takes_the_session_over(server: Server) -> None:
    async with talk(server) as first:
        session, last = first.seen[0]["session"]["id"], first.seen[0]["event_id"]
        await first.ask("hello again")
        await first.answer()
        async with websockets.connect(f"{server.ws}/v1/realtime?session={session}&last_event={last}") as socket:
            second = Talk(socket)
            assert "hello again" in await second.answer()
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await first.until("never")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4000
            await second.ask("what did i say")
            assert "hello again" in await second.answer()


async def test_a_new_session_begins_where_none_can_be_resumed(guarded: Server) -> None:
    async with talk(guarded, f"?token={TOKEN}") as mine:
        session, last = mine.seen[0]["session"]["id"], mine.seen[0]["event_id"]
        for token, known, event in (("other", session, last), (TOKEN, "sess_x", last), (TOKEN, session, "event_x")):
            if token == TOKEN and known == session:
                mine.socket.transport.abort()
            async with talk(guarded, f"?token={token}&session={known}&last_event={event}") as other:
                assert other.seen[0]["session"]["id"] != session


async def test_a_session_ends_with_a_socket_that_the_client_closes(serve: Serve) -> None:
    server = serve("--model", "stub")
    async with talk(server) as first:
        session, last = first.seen[0]["session"]["id"], first.seen[0]["event_id"]
    async with asyncio.timeout(5), httpx.AsyncClient(base_url=server.url) as http:
        while (await http.get("/health")).json()["sessions"]:
            pass
    async with talk(server, f"?session={session}&last_event={last}") as second:
        assert second.seen[0]["session"]["id"] != session


# --- the Realtime Speech Bridge ---------------------------------------------------------------------


async def test_the_example_client_of_the_bridge_works(guarded: Server) -> None:
    """Token, voice, 20 ms of audio, commit, response, as in the README of the bridge."""
    async with talk(guarded, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as bridge:
        await bridge.send("session.update", session={"voice": "shimmer"})
        sound = base64.b64encode(b"\x00\x00" * 960).decode()
        await bridge.send("input_audio_buffer.append", audio=sound)
        await bridge.send("input_audio_buffer.commit")
        await bridge.send("response.create")
        await bridge.until("response.done")
    names = [event["type"] for event in bridge.seen]
    assert "error" not in names
    for name in ("conversation.item.created", "response.output_text.delta", "response.audio.delta"):
        assert name in names
    updated = next(event for event in bridge.seen if event["type"] == "session.updated")
    assert updated["session"]["instructions"] == "be kind"


async def test_the_bridge_takes_its_defaults_from_its_variables(guarded: Server) -> None:
    async with talk(guarded, f"?token={TOKEN}") as bridge:
        await bridge.send("session.update", session={"turn_detection": {"type": "server_vad"}})
        detection = (await bridge.until("session.updated"))["session"]["turn_detection"]
    assert detection["silence_duration_ms"] == 320
    assert (detection["create_response"], detection["interrupt_response"]) == (False, True)


# --- input that no client should send ---------------------------------------------------------------


async def test_an_oversized_message_closes_its_own_socket_only(server: Server) -> None:
    async with talk(server) as other, talk(server) as rude:
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await rude.send("input_audio_buffer.append", audio="A" * (16 << 20))
            await rude.until("never")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        await other.ask("still there")
        assert "still there" in await other.answer()


async def test_too_much_audio_in_one_event_is_refused(server: Server) -> None:
    async with talk(server) as rude:
        await rude.send("input_audio_buffer.append", audio="A" * (15 << 20) + "AAAA")
        error = (await rude.until("error"))["error"]
        assert (error["code"], error["param"]) == ("string_above_max_length", "audio")
        await rude.ask("sorry")
        assert "sorry" in await rude.answer()


async def test_a_client_may_send_a_thousand_events_before_it_reads_one(server: Server) -> None:
    async with talk(server) as eager:
        for number in range(500):
            await eager.send("conversation.item.retrieve", item_id="nobody", event_id=f"e{number}")
            await eager.send("input_audio_buffer.clear")
        references: list[str] = []
        while len(references) < 500:
            references.append((await eager.until("error"))["error"]["event_id"])
        assert references == [f"e{number}" for number in range(500)]


async def test_frames_that_are_not_events_are_refused(server: Server) -> None:
    async with talk(server) as malformed:
        await malformed.socket.send(b"\x00\x01")
        assert (await malformed.until("error"))["error"]["code"] == "invalid_event"
        await malformed.socket.send("{")
        assert (await malformed.until("error"))["error"]["code"] == "invalid_json"
        await malformed.ask("well then")
        assert "well then" in await malformed.answer()


async def test_lost_sockets_disturb_no_other_session(server: Server, flite: Flite) -> None:
    """Sockets are lost before anything was sent, while the user speaks, and while a response is generated or sent."""
    speech = resample(flite("please open the window"), 24_000).pcm
    audio = base64.b64encode(speech + bytes(96_000)).decode()
    states: tuple[tuple[str | None, Json], ...] = (
        (None, {}),
        ("input_audio_buffer.speech_started", {"type": "input_audio_buffer.append", "audio": audio}),
        ("response.created", {"type": "input_audio_buffer.append", "audio": audio}),
        ("response.output_audio.delta", {"type": "response.create"}),
    )
    async with talk(server) as witness:
        for awaited, event in states:
            async with talk(server) as lost:
                if awaited is not None:
                    await lost.socket.send(orjson.dumps(event).decode())
                    await lost.until(awaited)
                lost.socket.transport.abort()
        await witness.ask("did you hear that")
        assert "did you hear that" in await witness.answer()


async def test_without_room_for_a_session_the_client_is_asked_to_try_again_later(serve: Serve) -> None:
    server = serve("--model", "stub", "--max-sessions", "1")
    async with talk(server), websockets.connect(f"{server.ws}/v1/realtime") as socket:
        error = orjson.loads(await socket.recv())["error"]
        assert (error["type"], error["code"]) == ("server_error", "engine_full")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
