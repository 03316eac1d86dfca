"""The EchoSight protocol against a real server with the embedded engine and real sockets."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
import websockets
from PIL import Image

from echosight.audio.resampling import resample
from echosight.media import AudioChunk
from tests.conftest import Flite
from tests.server.echosight_client import (
    Client,
    Record,
    body,
    joined,
    raw_sound,
    send_sound,
    silence,
    sound,
    subscribed,
    typed,
    until,
)
from tests.server.serving import Serve, Server

OPEN = "please open the window"


@pytest.fixture
def spoken(flite: Flite) -> AudioChunk:
    """The sentence "please open the window", with silence before and after it."""
    return joined(silence(0.3), flite(OPEN), silence(0.8))


def image(colour: str, size: tuple[int, int] = (64, 48), kind: str = "JPEG") -> str:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return base64.b64encode(data.getvalue()).decode()


async def test_a_whole_turn_in_one_request(server: Server, spoken: AudioChunk) -> None:
    async with Client(server.url, "one-shot") as me:
        answer = await me.ask(sound(spoken))
    first = answer.records[0]
    assert first["id"] == "one-shot"
    assert [r["response_id"] for r in answer.records] == list(range(1, len(answer.records) + 1))
    assert first["choices"][0]["text"] == "assistant:\n"
    audio = base64.b64decode(first["choices"][0]["audio"])
    assert audio[44:] == spoken.pcm, "the user's own turn comes first"
    assert "open the window" in answer.text
    assert answer.end == "stop"
    assert answer.choices[-1] | {"audio": None} == {
        "role": "assistant",
        "audio": None,
        "text": "\n<end>",
        "finish_reason": "stop",
    }
    assert answer.speech.seconds > 1
    assert np.abs(np.frombuffer(answer.speech.pcm, np.int16)).max() > 1000, "the answer is silent"
    stages = answer.records[-1]["waterfall_ms"]
    assert 0 <= stages["transcript"] <= stages["first_text"] <= stages["first_audio"] <= stages["first_byte"]


@pytest.mark.parametrize("path", ["/completions", "/api/v1/completions"])
async def test_both_prefixes_of_a_path_are_served(server: Server, path: str) -> None:
    async with Client(server.url, "paths") as me:
        response = await me.http.post(path, json=body(typed("hello")))
    assert response.status_code == 200
    assert "<end>" in response.text


@pytest.mark.parametrize(("rate", "channels", "piece_s"), [(8_000, 1, 0.2), (44_100, 2, 0.013), (48_000, 1, 1.0)])
async def test_live_audio_of_any_rate_piece_length_and_channel_count(
    server: Server, flite: Flite, rate: int, channels: int, piece_s: float
) -> None:
    import soundfile

    # Words that the recogniser also understands at 8 kHz.
    chunk = resample(joined(silence(0.3), flite("good morning"), silence(0.8)), rate)
    samples = np.frombuffer(chunk.pcm, np.int16)
    uid = f"live-{rate}"
    async with Client(server.url, uid) as me, me.answer() as records:
        size = int(rate * piece_s)
        for start in range(0, len(samples), size):
            wav = io.BytesIO()
            soundfile.write(wav, np.stack([samples[start : start + size]] * channels, 1), rate, "PCM_16", format="WAV")
            item = {"data": base64.b64encode(wav.getvalue()).decode(), "format": "wav"}
            await me.post("/stream", body({"type": "input_audio", "input_audio": item}))
        got = [record async for record in records]
    text = "".join(r["choices"][0]["text"] for r in got)
    assert "good morning" in text.lower()
    assert got[-1]["choices"][0]["finish_reason"] == "stop"
    assert got[-1]["waterfall_ms"]["endpoint"] is not None


async def test_stream_reports_the_end_of_the_turn(server: Server, spoken: AudioChunk) -> None:
    async with Client(server.url, "reasons") as me:
        reasons = await me.say(spoken)
        assert reasons[0] == "done"
        assert reasons[-1] == "skip"
        assert (await me.ask()).end == "stop", "the response waits for a late reader"


async def test_a_response_knows_the_previous_turn(server: Server, spoken: AudioChunk) -> None:
    async with Client(server.url, "memory") as me:
        await me.ask(typed("my name is Ada"))
        answer = await me.ask(sound(spoken))
    assert "Ada" in answer.text


async def test_speech_over_a_response_stops_it(server: Server, spoken: AudioChunk, flite: Flite) -> None:
    async with subscribed(server.ws, "barge") as socket:
        await send_sound(socket, spoken)
        seen: list[Record] = []
        while not any(r.get("words") for r in seen):
            seen.append(orjson.loads(await socket.recv()))
        await send_sound(socket, joined(flite("the answer is seven clubs"), silence(0.8)))
        ended = await until(socket, "waterfall", seen)
        assert ended["outcome"] == "cancelled"
        notes = [r.get("type") or r["choices"][0]["finish_reason"] for r in seen if r.get("choices") or r.get("type")]
        assert notes[-2:] == ["interrupted", "waterfall"]
        truncated = next(r for r in seen if r.get("type") == "truncated")
        whole = "".join(r["choices"][0]["text"] for r in seen if isinstance(r.get("choices"), list))
        assert len(truncated["text"]) < len(whole)
        assert (await until(socket, "waterfall"))["outcome"] == "completed", "and the next turn gets a response"


async def test_one_socket_carries_both_directions(server: Server, spoken: AudioChunk) -> None:
    async with subscribed(server.ws, "socket", sample_rate=16_000, audio="binary") as socket:
        await send_sound(socket, spoken, 0.037)
        texts, speech, notes = "", bytearray(), []
        async with asyncio.timeout(30):
            async for message in socket:
                if isinstance(message, bytes):
                    speech += message
                    continue
                record = orjson.loads(message)
                if "type" in record:
                    notes.append(record)
                    if record["type"] == "waterfall":
                        break
                else:
                    texts += record["choices"][0]["text"]
    assert "open the window" in texts
    assert len(speech) > 24_000
    kinds = [n["type"] for n in notes]
    assert kinds.index("speech_started") < kinds.index("speech_stopped") < kinds.index("waterfall")
    finals = [n["text"] for n in notes if n["type"] == "transcript" and n["final"]]
    assert any("open the window" in text for text in finals)
    started = next(n for n in notes if n["type"] == "speech_started")
    assert started["audio_ms"] < 400


async def test_a_socket_without_subscription_acknowledges_only(server: Server, spoken: AudioChunk) -> None:
    async with websockets.connect(f"{server.ws}/ws/api/v1/stream", additional_headers={"uid": "plain"}) as socket:
        for request, reason in [
            (body(raw_sound(spoken)), "skip"),
            (body({"type": "image_data", "image_data": {"data": "", "type": 2}}), "empty audio"),
            (body({"type": "stop_response"}), "stop"),
            ({"messages": []}, ""),
        ]:
            await socket.send(orjson.dumps(request).decode())
            assert orjson.loads(await socket.recv())["choices"] == {
                "role": "assistant",
                "content": "success",
                "finish_reason": reason,
            }
        for wrong in ("{", b"\0\0", '{"messages": 3}'):
            await socket.send(wrong)
            assert "error" in orjson.loads(await socket.recv())
        await socket.send("{")
        assert orjson.loads(await socket.recv())["error"] == "Invalid JSON"
        await socket.send(b"\xff\xfe", text=True)  # not UTF-8: the WebSocket protocol closes the socket
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007


@pytest.mark.parametrize("spelling", ["image_data", "image", "image_url"])
async def test_the_response_describes_the_image(server: Server, spelling: str) -> None:
    data = image("red", (64, 48), "PNG")
    item = (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        if spelling == "image_url"
        else {"type": spelling, spelling: {"data": data, "type": 2}}
    )
    async with Client(server.url, f"image-{spelling}") as me:
        answer = await me.ask(typed("what do you see"), item)
    assert "64" in answer.text
    assert "48" in answer.text
    assert "red" in answer.text


async def test_a_live_image_belongs_to_its_turn(server: Server, spoken: AudioChunk) -> None:
    frame = {"type": "image_data", "image_data": {"data": image("blue"), "type": 2}}
    async with Client(server.url, "live-image") as me, me.answer() as records:
        await me.post("/stream", body(sound(spoken), frame))
        text = "".join([r["choices"][0]["text"] async for r in records])
    assert "blue" in text


async def test_stop_ends_the_clients_own_response_and_no_other(server: Server) -> None:
    async with (
        Client(server.url, "victim") as victim,
        Client(server.url, "stranger") as stranger,
        subscribed(server.ws, "victim") as socket,
    ):
        await socket.send(orjson.dumps(body(typed("count slowly to a very high number please"))).decode())
        record: Record = {}
        while not isinstance(record.get("choices"), list):
            record = orjson.loads(await socket.recv())
        answer = await stranger.post("/stop")
        assert answer["choices"] == {"role": "assistant", "content": "success", "finish_reason": "stop"}
        while not record.get("words"):
            record = orjson.loads(await socket.recv())
        await victim.post("/api/v1/stop")
        assert (await until(socket, "waterfall"))["outcome"] == "cancelled"


async def test_two_users_never_get_each_others_turns(server: Server, flite: Flite) -> None:
    says = {"ann": OPEN, "ben": "the answer is seven clubs"}

    async def live(uid: str) -> str:
        async with subscribed(server.ws, uid) as socket:
            seen: list[Record] = []
            for _ in range(3):
                await send_sound(socket, joined(flite(says[uid]), silence(0.8)))
                await until(socket, "waterfall", seen)
            return " ".join(r["text"] for r in seen if r.get("type") == "transcript" and r["final"])

    ann, ben = await asyncio.gather(live("ann"), live("ben"))
    assert "window" in ann
    assert "clubs" not in ann
    assert "clubs" in ben
    assert "window" not in ben


async def test_options_belong_to_one_client(server: Server) -> None:
    options = {"hd_video": True, "use_audio_prompt": 0, "vad_threshold": 1.0, "assistant_prompt": "Be kind."}
    async with Client(server.url, "options") as me:
        answer = await me.post("/init_options", body({"type": "options", "options": options}))
    assert answer["choices"]["finish_reason"] == "done"
    assert answer["choices"]["content"]
    async with Client(server.url, "options") as me:
        for wrong in (
            {"vad_threshold": 7},
            {"vad_threshold": True},
            {"use_audio_prompt": 4},
            {"hd_video": "yes"},
            {"voice_clone_prompt": 1},
        ):
            refused = await me.http.post("/init_options", json=body({"type": "options", "options": wrong}))
            assert refused.status_code == 400
            assert next(iter(wrong)) in refused.json()["detail"]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
async def test_turns_are_detected_with_any_threshold(server: Server, spoken: AudioChunk, threshold: float) -> None:
    async with Client(server.url, f"threshold-{threshold}") as me:
        await me.post("/init_options", body({"type": "options", "options": {"vad_threshold": threshold}}))
        assert (await me.say(spoken))[-1] == "skip"


async def test_a_second_reader_is_refused(server: Server) -> None:
    async with Client(server.url, "twice") as me, me.answer():
        refused = await me.http.post("/completions", json=body({"type": "none"}))
        assert refused.status_code == 409


async def test_a_client_that_reconnects_at_once_is_accepted(server: Server) -> None:
    """The server may not have noticed yet that the previous stream is closed."""
    async with Client(server.url, "restless") as me:
        for _ in range(10):
            async with me.answer():
                pass
        assert (await me.ask(typed("hello"))).end == "stop"


async def test_the_client_closing_the_stream_stops_the_model(server: Server) -> None:
    async with Client(server.url, "leaver") as me:
        await me.say(silence(0.1))
        async with me.answer(body(typed("say something long, and then some more of it, please"))) as records:
            await anext(records)
        async with me.answer(body(typed("hello"))) as records:
            assert (await anext(records))["choices"][0]["text"] == "assistant:\n"


async def test_errors_name_the_mistake(server: Server) -> None:
    cases = [
        ({"content": b"{"}, 400, "Invalid JSON"),
        ({"json": {"messages": "x"}}, 400, "messages"),
        ({"json": body({"type": "input_audio", "input_audio": {"data": "%%", "format": "wav"}})}, 400, "base64"),
        ({"json": body({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})}, 400, ""),
        ({"json": body({"type": "image_data", "image_data": {"data": "AAAA", "type": 2}})}, 400, ""),
        ({"json": body({"type": "dance"})}, 400, "dance"),
    ]
    async with httpx.AsyncClient(base_url=server.url) as http:
        for path in ("/stream", "/completions"):
            for request, status, words in cases:
                answer = await http.post(path, headers={"uid": "mistakes"}, **request)  # type: ignore[arg-type]
                assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
        nobody = await http.post("/stream", json=body())
    assert (nobody.status_code, nobody.json()["detail"]) == (400, "Missing uid in headers")
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{server.ws}/ws/stream")
    assert refused.value.response.status_code == 400


async def test_an_empty_turn_is_refused(server: Server) -> None:
    """A client that recorded nothing by mistake would otherwise wait for live speech."""
    async with Client(server.url, "hollow") as me:
        for hollow in (sound(silence(0)), raw_sound(silence(0)), typed("")):
            refused = await me.http.post("/completions", json=body(hollow))
            assert (refused.status_code, refused.json()["code"]) == (400, "empty_turn")


async def test_a_refused_request_has_no_effect(server: Server, spoken: AudioChunk) -> None:
    async with Client(server.url, "refused") as me:
        refused = await me.http.post("/stream", json=body(sound(spoken), {"type": "dance"}))
        assert refused.status_code == 400
        assert (await me.say(silence(0.8)))[-1] == "done", "its speech was taken in although the request was refused"


async def test_feedback_is_stored_as_data(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    async with Client(server.url, "critic") as me:
        rating = {"response_id": "../../etc/passwd", "rating": "like", "comment": "good"}
        await me.post("/feedback", rating)
        for wrong in ({}, {"response_id": "1", "rating": "great"}, {"response_id": 1, "rating": "like"}):
            assert (await me.http.post("/feedback", json=wrong)).status_code == 422
    files = [path for path in (tmp_path / "log_data").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["feedback.jsonl"], "nothing else is written unless recording is on"
    line = orjson.loads(files[0].read_bytes())
    assert (line["response_id"], line["rating"], line["comment"]) == ("../../etc/passwd", "like", "good")


async def test_health_and_metrics_are_served(server: Server) -> None:
    async with Client(server.url, "metrics") as me:
        await me.ask(typed("hello"))
        health = (await me.http.get("/api/v1/health")).json()
        metrics = (await me.http.get("/metrics")).text
    assert health["status"] == "OK"
    assert health["sessions"] >= 1
    assert 'echosight_turns_total{outcome="completed"}' in metrics
    assert 'stage="first_audio"' in metrics
