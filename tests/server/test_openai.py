"""The plain OpenAI doors on a real server."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from PIL import Image

from echosight.audio.formats import decode_audio, wav_bytes
from echosight.media import Transcript, Word
from echosight.wire.openai import transcription as transcripts
from tests.conftest import Flite
from tests.server.serving import Serve, Server

Json = dict[str, Any]


ASKED = {"role": "user", "content": "hi"}
HI = {"messages": [ASKED]}


def ask(server: Server, *content: Json, **fields: Any) -> httpx.Response:
    body = {"model": "x", "messages": [{"role": "user", "content": list(content)}], **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)


def text(said: str) -> Json:
    return {"type": "text", "text": said}


def chunks(response: httpx.Response) -> list[Json]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [orjson.loads(line) for line in lines[:-1]]


def test_the_one_model(server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/models").json()
    assert listed["object"] == "list"
    assert [model["object"] for model in listed["data"]] == ["model"]


def test_a_model_by_its_name(server: Server) -> None:
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert httpx.get(f"{server.url}/v1/models/{model['id']}").json() == model
    unknown = httpx.get(f"{server.url}/v1/models/some/other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_a_completion(server: Server) -> None:
    answer = ask(server, text("good morning")).json()
    (choice,) = answer["choices"]
    assert "good morning" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_a_completion_in_pieces(server: Server) -> None:
    told = chunks(ask(server, text("good morning"), stream=True, stream_options={"include_usage": True}))
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "good morning" in "".join(c["choices"][0]["delta"].get("content", "") for c in told if c["choices"])
    assert told[-2]["choices"][0]["finish_reason"] == "stop"
    assert told[-1]["usage"]["completion_tokens"] > 0
    assert len({chunk["id"] for chunk in told}) == 1


def test_a_limit_of_tokens(server: Server) -> None:
    (choice,) = ask(server, text("good morning"), max_tokens=2).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("You wrote: ", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_answer_ends_before(server: Server, stream: bool) -> None:
    """The sequence lies across two pieces; another one only begins, at the very end."""
    answer = ask(server, text("good morning"), stop=["morning. I", "d. and"], stream=stream)
    if stream:
        told = chunks(answer)
        said = "".join(c["choices"][0]["delta"].get("content", "") for c in told)
        assert told[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        said = answer.json()["choices"][0]["message"]["content"]
    assert said == "You wrote: good "
    whole = ask(server, text("good morning")).json()["choices"][0]["message"]["content"]
    assert ask(server, text("good morning"), stop="understand. x").json()["choices"][0]["message"]["content"] == whole


def test_pictures_and_speech(server: Server, flite: Flite) -> None:
    made = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(made, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(made.getvalue()).decode()}"
    sound = base64.b64encode(wav_bytes(flite("open the window please"))).decode()
    answer = ask(
        server,
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    ).json()
    said = answer["choices"][0]["message"]["content"]
    assert "red" in said
    assert "open the window" in said


def test_history_and_function_results(server: Server) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the first thing"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a result"},
        {"role": "user", "content": "what did i say"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    body = {"messages": messages, "tools": tools}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).json()
    assert "the first thing" in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("form", ["json", "text", "verbose_json"])
def test_a_transcript(server: Server, flite: Flite, form: str) -> None:
    recording = flite("open the window please")
    files = {"file": ("speech.wav", wav_bytes(recording))}
    data = {"model": "whisper-1", "response_format": form}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files=files, data=data, timeout=30)
    assert "open the window" in answer.text
    if form == "verbose_json":
        told = answer.json()
        assert told["duration"] == pytest.approx(recording.seconds)
        assert " ".join(word["word"] for word in told["words"]) == told["text"]
        starts = [word["start"] for word in told["words"]]
        assert starts == sorted(starts)


@pytest.mark.parametrize(("form", "begins", "point"), [("srt", "1\n", ","), ("vtt", "WEBVTT\n\n", ".")])
def test_subtitles(server: Server, flite: Flite, form: str, begins: str, point: str) -> None:
    files = {"file": ("speech.wav", wav_bytes(flite("open the window please")))}
    data = {"model": "whisper-1", "response_format": form}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files=files, data=data, timeout=30)
    assert answer.text.startswith(begins)
    assert re.search(
        rf"^00:00:0\d{re.escape(point)}\d{{3}} --> 00:00:0\d{re.escape(point)}\d{{3}}\n.*open", answer.text, re.M
    )


def test_a_recording_must_be_there(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", data={"model": "whisper-1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", content=b"no form", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_subtitles_end_with_a_sentence_a_pause_and_what_can_be_read() -> None:
    said = "Hello there. This is a pause and then some more"
    starts = [0, 400, 900, 1200, 1500, 1700, 2000, 4000, 4500, 4900]
    ends = [match.end() for match in re.finditer(r"\S+", said)]
    transcript = Transcript(said, tuple(Word(at, end) for at, end in zip(starts, ends, strict=True)))
    parts = transcripts.segments(transcript, 5.5)
    assert [part["text"] for part in parts] == ["Hello there.", "This is a pause and", "then some more"]
    assert [(part["start"], part["end"]) for part in parts] == [(0.0, 0.9), (0.9, 4.0), (4.0, 5.5)]
    assert [part["text"] for part in transcripts.segments(Transcript("no times"), 2.0)] == ["no times"]
    assert transcripts.segments(Transcript(""), 2.0) == []


def speak(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": "tts-1", "voice": "alloy", "input": "Open the window. It is warm in here.", **fields}
    return httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=30)


@pytest.mark.parametrize("form", ["mp3", "opus", "flac", "wav"])
def test_speech(server: Server, form: str) -> None:
    answer = speak(server, response_format=form)
    assert answer.status_code == 200, answer.text
    chunk = decode_audio(answer.content, form)
    assert chunk.seconds > 1
    assert np.abs(np.frombuffer(chunk.pcm, np.int16)).max() > 1_000


def test_speech_as_events(server: Server) -> None:
    answer = speak(server, response_format="pcm", stream_format="sse")
    told = [orjson.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert {event["type"] for event in told[:-1]} == {"speech.audio.delta"}
    assert told[-1]["type"] == "speech.audio.done"
    sound = b"".join(base64.b64decode(event["audio"]) for event in told[:-1])
    assert len(sound) == pytest.approx(len(speak(server, response_format="pcm").content), rel=0.02)


def test_faster_speech_is_shorter(server: Server) -> None:
    plain, fast = (len(speak(server, response_format="pcm", speed=speed).content) for speed in (1.0, 1.5))
    assert plain > 48_000
    assert fast < 0.85 * plain


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "robot"}]}, "messages.0.role"),
        ("chat/completions", {**HI, "n": 2}, "n"),
        ("chat/completions", {**HI, "logprobs": True}, "logprobs"),
        ("chat/completions", {**HI, "response_format": {"type": "json_object"}}, "response_format.type"),
        ("chat/completions", {**HI, "modalities": ["text", "audio"]}, "modalities.1"),
        ("chat/completions", {**HI, "functions": [{"name": "f"}]}, "functions"),
        ("chat/completions", {**HI, "tools": [{"type": "custom"}]}, "tools.0.type"),
        ("chat/completions", {**HI, "tools": [], "tool_choice": "perhaps"}, "tool_choice"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "file"}]}]},
            "messages.0.content.0.type",
        ),
        ("audio/speech", {"input": ""}, "input"),
        ("audio/speech", {"input": "x", "response_format": "aac"}, "response_format"),
    ],
)
def test_what_is_wrong_is_named(server: Server, path: str, body: Json, param: str) -> None:
    answer = httpx.post(f"{server.url}/v1/{path}", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_value", param)


def test_addresses_of_pictures_are_not_fetched(server: Server) -> None:
    answer = ask(server, {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")


def test_no_key_no_answer(serve: Serve) -> None:
    server = serve(API_TOKENS="sesame")
    assert ask(server, text("hi")).json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    opened = httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer sesame"})
    assert opened.status_code == 200
