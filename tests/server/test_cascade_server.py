"""The whole server with upstream STT, LLM and TTS servers: real sockets in between, speech in and out."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from echosight.audio.formats import decode_audio, wav_bytes
from echosight.media import AudioChunk
from tests.conftest import Flite
from tests.engines.llm.llama.programs import KINDS, llama
from tests.engines.upstream import Handler, Reply, Request, Server, answer, finished, sse, text, upstream
from tests.server.echosight_client import Client, silence, sound, typed
from tests.server.serving import Serve
from tests.server.serving import Server as Served

CHAT, HEAR, SPEAK = "/v1/chat/completions", "/v1/audio/transcriptions", "/v1/audio/speech"
REPLY = "Yes, the window is open now. Is there anything else?"
BUILT_IN = ("--stt", "sphinx", "--tts", "espeak")


def tone(letters: int) -> bytes:
    """20 ms of sound for each letter, at 16 kHz."""
    return (9000 * np.sin(np.arange(320 * letters) / 6)).astype("<i2").tobytes()


async def speak(request: Request, reply: Reply) -> None:
    if request.method == "GET":
        await answer({}, 405)(request, reply)
        return
    await reply.head(Content_Type="audio/wav")
    await reply.write(wav_bytes(AudioChunk(tone(len(request.json["input"])), 16_000)))
    await reply.end()


@pytest.fixture
async def parts() -> AsyncIterator[Server]:
    async with upstream() as server:
        server.on("/v1/models", answer({"data": [{"id": "tiny"}]}))
        server.on(CHAT, streamed())
        server.on(HEAR, answer({"text": "Open the window, please."}))
        server.on(SPEAK, speak)
        yield server


def streamed() -> Handler:
    """The reply word by word; an empty one where the prompt is only sent to be prefilled."""
    stream = sse(*(text(word + " ") for word in REPLY.split()), finished(), done=False)

    async def handle(request: Request, reply: Reply) -> None:
        await (stream if request.json.get("stream") else answer({"choices": []}))(request, reply)

    return handle


async def test_three_servers_make_one_conversation(parts: Server, serve: Serve, flite: Flite) -> None:
    url = f"{parts.url}/v1"
    flags = ("--model", url, "--stt", "openai:tiny", "--tts", "openai:tiny", "--system-prompt", "Be brief.")
    addresses = {"WHISPER_URL": url, "TTS_API_URL": url}
    served = await asyncio.to_thread(serve, *flags, **addresses, DEFAULT_TTS_INSTRUCTIONS="Speak calmly.")
    spoken = flite("open the window")
    async with Client(served.url) as me:
        whole = await me.ask(sound(spoken))
        await me.say(AudioChunk(spoken.pcm + silence(1.0).pcm, spoken.rate))
        live = await me.ask()
    for answered in (whole, live):
        assert answered.text.split() == REPLY.split()
        assert answered.end == "stop"
        assert abs(answered.speech.seconds - 0.02 * len(REPLY)) < 0.1
        assert np.abs(np.frombuffer(answered.speech.pcm, "<i2")).max() > 8000
    heard = [
        decode_audio(request.body[request.body.index(b"RIFF") :]) for request in parts.requests_to(HEAR) if request.body
    ]
    assert heard[0].pcm.startswith(spoken.pcm)
    assert [request.json["input"] for request in parts.requests_to(SPEAK) if request.body][:2] == [
        "Yes, the window is open now.",
        "Is there anything else?",
    ]
    assert {request.json["instructions"] for request in parts.requests_to(SPEAK) if request.body} == {"Speak calmly."}
    replies = [request.json["messages"] for request in parts.requests_to(CHAT) if request.json.get("stream")]
    user = {"role": "user", "content": "Open the window, please."}
    assert replies[0] == [{"role": "system", "content": "Be brief."}, user]
    assert replies[1][:2] == replies[0]
    assert replies[1][-1] == user
    assert f"tiny at 127.0.0.1:{parts.port}" in served.log


async def test_the_prompt_is_prefilled_while_the_user_speaks(parts: Server, serve: Serve, flite: Flite) -> None:
    flags = ("--model", f"{parts.url}/v1", *BUILT_IN, "--system-prompt", "Be brief.")
    served = await asyncio.to_thread(serve, *flags)
    async with Client(served.url) as me:
        await me.say(AudioChunk(flite("open the window").pcm + silence(1.0).pcm))
        assert (await me.ask()).end == "stop"
    first, *_, last = (request.json for request in parts.requests_to(CHAT))
    assert (first["max_tokens"], first["messages"]) == (1, [{"role": "system", "content": "Be brief."}])
    assert last["stream"]
    assert last["messages"][:1] == first["messages"]


async def test_a_second_llm_takes_over_where_the_first_fails(parts: Server, serve: Serve) -> None:
    async with upstream() as broken:
        broken.on(CHAT, answer({"error": {"message": "out of memory"}}, 400))
        broken.on("/v1/models", answer({"data": [{"id": "broken"}]}))
        served = await asyncio.to_thread(serve, "--model", f"{broken.url}/v1,{parts.url}/v1", *BUILT_IN)
        async with Client(served.url) as me:
            for _ in range(2):
                assert (await me.ask(typed("Open the window."))).text.split() == REPLY.split()
        assert len(broken.requests_to(CHAT)) == 1
        assert f"broken at 127.0.0.1:{broken.port} failed (PermanentError); trying the next one" in served.log


@pytest.mark.parametrize("kind", KINDS)
async def test_a_killed_llama_server_is_restarted_for_the_next_turn(serve: Serve, tmp_path: Path, kind: str) -> None:
    program, model = llama(kind, tmp_path)
    flags = ("--model", model, *BUILT_IN, "--context-size", "256")
    served = await asyncio.to_thread(serve, *flags, LLAMA_EXE_PATH=program)
    async with Client(served.url) as me:
        assert (await me.ask(typed("Hello"))).text
        (first,) = named(served, model)
        os.kill(first, signal.SIGKILL)
        again = await me.ask(typed("Hello again"))
        (second,) = named(served, model)
    assert second != first
    assert again.text
    assert again.end in ("stop", "length")
    assert again.speech.seconds > 0.1


def named(served: Served, argument: str) -> list[int]:
    """The server's child processes that were started with an argument."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in served.children()}
    return [pid for pid, command in commands.items() if argument.encode() in command]
