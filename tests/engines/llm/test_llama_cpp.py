"""Supervised llama.cpp: a stand-in process, and the real server on a random model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from echosight.conversation import AudioPart, Conversation, Item, TextPart, UserTurn
from echosight.engines import GenerationSummary, TextChunk
from echosight.engines.llm.llama_cpp import LlamaCppLLM, chat
from echosight.engines.runtime.retries import TransientError
from echosight.engines.runtime.supervisor import RESTARTS, Supervisor
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.llm.llama.programs import KINDS, stand_in
from tests.engines.llm.llama.programs import llama as llama_cpp

OPTIONS = GenerateOptions(max_output_tokens=8)
TALK = Conversation(instructions="Be brief.", items=[Item("user", (TextPart("Hello"),))])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stand_in(tmp_path)
    return tmp_path


def made(kind: str, folder: Path) -> LlamaCppLLM:
    program, model = llama_cpp(kind, folder)
    return chat(model, Settings(llama_exe_path=program, context_size=512))


@pytest.fixture(params=KINDS)
async def llama(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LlamaCppLLM]:
    started = made(request.param, tmp_path)
    await started.start()
    yield started
    await started.close()


@pytest.fixture
async def real_llama(tmp_path: Path) -> AsyncIterator[LlamaCppLLM]:
    started = made("real", tmp_path)
    await started.start()
    yield started
    await started.close()


def command(folder: Path) -> Callable[[int], list[str]]:
    model = str(folder / "tiny.gguf")
    return lambda port: [str(folder / "llama-server"), "--model", model, "--port", str(port)]


async def said(llama: LlamaCppLLM, options: GenerateOptions = OPTIONS) -> str:
    pieces = [piece async for piece in llama.generate(TALK, options)]
    assert isinstance(pieces[-1], GenerationSummary)
    return "".join(piece.text for piece in pieces if isinstance(piece, TextChunk))


def killed(llama: LlamaCppLLM) -> int:
    pid = llama.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_answers(llama: LlamaCppLLM) -> None:
    assert await said(llama)


async def test_killed_it_is_back_for_the_next_turn(llama: LlamaCppLLM) -> None:
    await said(llama)
    for _ in range(2):
        dead = killed(llama)
        assert await said(llama)
        assert llama.server.pid != dead
    assert llama.server.restarts == 2


async def test_it_ends_with_the_server(llama: LlamaCppLLM) -> None:
    pid = llama.server.pid
    assert pid is not None
    await llama.close()
    assert not is_alive(pid)
    with pytest.raises(TransientError):
        await said(llama)


async def test_two_are_answered_at_once_and_neither_is_cut(real_llama: LlamaCppLLM) -> None:
    long, short = GenerateOptions(max_output_tokens=300), GenerateOptions(max_output_tokens=5)
    async with aclosing(real_llama.generate(TALK, long)) as pieces:
        first = [await anext(pieces)]
        # Somebody else's reply, and what is computed ahead for a third, come in between.
        other = asyncio.create_task(said(real_llama, short))
        await real_llama.prefill(Conversation(instructions="Be long.", pending_turn=UserTurn("t1")), "")
        first += [piece async for piece in pieces]
    assert isinstance(first[-1], GenerationSummary)
    assert (first[-1].finish, len(first)) == ("length", 301)
    assert len((await other).split()) == 5


async def test_an_interrupted_reply_does_not_hold_up_the_next(real_llama: LlamaCppLLM) -> None:
    endless = GenerateOptions(max_output_tokens=100_000)
    for _ in range(3):
        async with aclosing(real_llama.generate(TALK, endless)) as pieces:
            assert await anext(pieces)
        async with asyncio.timeout(10):
            assert await said(real_llama)
    assert real_llama.server.restarts == 0


async def test_the_prompt_is_sent_ahead(folder: Path) -> None:
    llama = made("stand-in", folder)
    await llama.start()
    talk = Conversation(instructions="Be brief.", pending_turn=UserTurn("t1"))
    await llama.prefill(talk, "")
    await asyncio.gather(*llama._chat._prefills.values())
    assert talk.pending_turn is not None
    talk.pending_turn.add(AudioPart(bytes(640)))
    await llama.prefill(talk, "How")
    await asyncio.gather(*llama._chat._prefills.values())
    await llama.close()
    ahead = [json.loads(line) for line in (folder / "ahead").read_text().splitlines()]
    system = {"role": "system", "content": "Be brief."}
    assert ahead == [[system], [system, {"role": "user", "content": "How"}]]
    assert "--ctx-size 512 --n-gpu-layers 999" in (folder / "arguments").read_text()


async def test_it_is_left_down_after_five_restarts(folder: Path) -> None:
    server = Supervisor("tiny", command(folder), pause_s=0.001)
    await server.start()
    (folder / "broken").touch()
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    assert server._owner is not None
    await asyncio.wait_for(asyncio.shield(server._owner), 30)
    assert (server.given_up, server.restarts, server.healthy.is_set()) == (True, RESTARTS, False)
    await server.close()


async def test_one_that_does_not_answer_is_restarted(folder: Path) -> None:
    server = Supervisor("tiny", command(folder), check_s=0.05, pause_s=0.001)
    await server.start()
    first = server.pid
    (folder / "ill").touch()
    while server.healthy.is_set():
        await asyncio.sleep(0.01)
    (folder / "ill").unlink()
    await asyncio.wait_for(server.healthy.wait(), 30)
    assert server.pid != first
    await server.close()


async def test_what_it_says_without_end_does_not_stop_it(folder: Path) -> None:
    (folder / "chatty").touch()
    server = Supervisor("tiny", command(folder))
    async with asyncio.timeout(60):
        await server.start()
    await server.close()


async def test_what_keeps_it_from_starting_is_told(folder: Path) -> None:
    (folder / "broken").touch()
    llama = made("stand-in", folder)
    with pytest.raises(SetupError, match=r"llama\.cpp with tiny\.gguf does not start: error: failed to load the model"):
        await llama.start()
    await llama.close()


def test_what_is_missing_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = str(folder / "tiny.gguf")
    (folder / "text.gguf").write_text("no model")
    monkeypatch.setenv("PATH", "")
    for settings, model, sentence in (
        (Settings(llama_model_path=""), None, "set LLAMA_MODEL_PATH"),
        (Settings(), "none.gguf", r"There is no file none\.gguf"),
        (Settings(), str(folder / "text.gguf"), "is no GGUF file"),
        (Settings(llama_exe_path="nowhere/llama-server"), gguf, "LLAMA_EXE_PATH=nowhere/llama-server is no program"),
        (Settings(llama_exe_path=""), gguf, "install llama-server and set LLAMA_EXE_PATH"),
    ):
        with pytest.raises(SetupError, match=sentence):
            chat(model, settings)
