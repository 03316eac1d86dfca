"""The plain OpenAI endpoints on a real server."""

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
from echosight.wire.openai import transcription as module
from tests.conftest import Flite
from tests.server.serving import Serve, Server

Json = dict[str, Any]


MESSAGE = {"role": "user", "content": "hi"}
HI = {"messages": [MESSAGE]}


def ask(server: Server, *content: Json, **fields: Any) -> httpx.Response:
    body = {"model": "x", "messages": [{"role": "user", "content": list(content)}], **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)


def text(content: str) -> Json:
    return {"type": "text", "text": content}


def chunks(response: httpx.Response) -> list[Json]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [orjson.loads(line) for line in lines[:-1]]


def test_the_list_holds_the_one_model(server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/models").json()
    assert listed["object"] == "list"
    assert [model["object"] for model in listed["data"]] == ["model"]


def test_a_model_is_found_by_its_name(server: Server) -> None:
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert httpx.get(f"{server.url}/v1/models/{model['id']}").json() == model
    unknown = httpx.get(f"{server.url}/v1/models/some/other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_a_completion_responds_to_the_messages(server: Server) -> None:
    answer = ask(server, text("good morning")).json()
    (choice,) = answer["choices"]
    assert "good morning" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_a_completion_can_be_streamed(server: Server) -> None:
    received = chunks(ask(server, text("good morning"), stream=True, stream_options={"include_usage": True}))
    assert received[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "good morning" in "".join(c["choices"][0]["delta"].get("content", "") for c in received if c["choices"])
    assert received[-2]["choices"][0]["finish_reason"] == "stop"
    assert received[-1]["usage"]["completion_tokens"] > 0
    assert len({chunk["id"] for chunk in received}) == 1


def test_a_completion_ends_at_the_limit_of_tokens(server: Server) -> None:
    (choice,) = ask(server, text("good morning"), max_tokens=2).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("You wrote: ", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_ends_before_a_stop_sequence(server: Server, stream: bool) -> None:
    """One sequence spans two chunks. Another one is only half there when the completion ends."""
    answer = ask(server, text("good morning"), stop=["morning. I", "d. and"], stream=stream)
    if stream:
        received = chunks(answer)
        content = "".join(c["choices"][0]["delta"].get("content", "") for c in received)
        assert received[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        content = answer.json()["choices"][0]["message"]["content"]
    assert content == "You wrote: good "
    whole = ask(server, text("good morning")).json()["choices"][0]["message"]["content"]
    assert ask(server, text("good morning"), stop="understand. x").json()["choices"][0]["message"]["content"] == whole


def test_a_completion_takes_images_and_speech(server: Server, flite: Flite) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    sound = base64.b64encode(wav_bytes(flite("please open the window"))).decode()
    answer = ask(
        server,
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    ).json()
    content = answer["choices"][0]["message"]["content"]
    assert "red" in content
    assert "open the window" in content


def test_a_completion_takes_history_and_function_results(server: Server) -> None:
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
def test_a_recording_is_transcribed(server: Server, flite: Flite, form: str) -> None:
    recording = flite("please open the window")
    files = {"file": ("speech.wav", wav_bytes(recording))}
    data = {"model": "whisper-1", "response_format": form}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files=files, data=data, timeout=30)
    assert "open the window" in answer.text
    if form == "verbose_json":
        transcript = answer.json()
        assert transcript["duration"] == pytest.approx(recording.seconds)
        assert " ".join(word["word"] for word in transcript["words"]) == transcript["text"]
        starts = [word["start"] for word in transcript["words"]]
        assert starts == sorted(starts)


@pytest.mark.parametrize(("form", "begins", "point"), [("srt", "1\n", ","), ("vtt", "WEBVTT\n\n", ".")])
def test_a_recording_is_transcribed_as_subtitles(
    server: Server, flite: Flite, form: str, begins: str, point: str
) -> None:
    files = {"file": ("speech.wav", wav_bytes(flite("please open the window")))}
    data = {"model": "whisper-1", "response_format": form}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files=files, data=data, timeout=30)
    assert answer.text.startswith(begins)
    assert re.search(
        rf"^00:00:0\d{re.escape(point)}\d{{3}} --> 00:00:0\d{re.escape(point)}\d{{3}}\n.*open", answer.text, re.M
    )


def test_a_request_without_a_recording_is_refused(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", data={"model": "whisper-1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", content=b"no form", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_a_subtitle_ends_with_a_sentence_before_a_pause_or_when_it_gets_long() -> None:
    text_ = "Hello there. This is a pause and then some more"
    starts = [0, 400, 900, 1200, 1500, 1700, 2000, 4000, 4500, 4900]
    ends = [match.end() for match in re.finditer(r"\S+", text_)]
    transcript = Transcript(text_, tuple(Word(start, end) for start, end in zip(starts, ends, strict=True)))
    parts = module.segments(transcript, 5.5)
    assert [part["text"] for part in parts] == ["Hello there.", "This is a pause and", "then some more"]
    assert [(part["start"], part["end"]) for part in parts] == [(0.0, 0.9), (0.9, 4.0), (4.0, 5.5)]
    assert [part["text"] for part in module.segments(Transcript("no times"), 2.0)] == ["no times"]
    assert module.segments(Transcript(""), 2.0) == []


def speak(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": "tts-1", "voice": "alloy", "input": "Open the window. It is warm in here.", **fields}
    return httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=30)


@pytest.mark.parametrize("form", ["mp3", "opus", "flac", "wav"])
def test_a_text_is_spoken_in_every_format(server: Server, form: str) -> None:
    answer = speak(server, response_format=form)
    assert answer.status_code == 200, answer.text
    chunk = decode_audio(answer.content, form)
    assert chunk.seconds > 1
    assert np.abs(np.frombuffer(chunk.pcm, np.int16)).max() > 1_000


def test_speech_can_be_sent_as_events(server: Server) -> None:
    answer = speak(server, response_format="pcm", stream_format="sse")
    events = [orjson.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert events[-1]["type"] == "speech.audio.done"
    sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
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
def test_errors_name_the_field_at_fault(server: Server, path: str, body: Json, param: str) -> None:
    answer = httpx.post(f"{server.url}/v1/{path}", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_value", param)


def test_urls_of_images_are_not_fetched(server: Server) -> None:
    answer = ask(server, {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")


def test_requests_without_a_token_are_refused(serve: Serve) -> None:
    server = serve(API_TOKENS="sesame")
    assert ask(server, text("hi")).json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    opened = httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer sesame"})
    assert opened.status_code == 200
