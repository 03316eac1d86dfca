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
from echosight.engines.llm.llama_cpp import LlamaCppLLM, make_llm
from echosight.engines.runtime.retries import TransientError
from echosight.engines.runtime.supervisor import RESTARTS, Supervisor
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.llm.llama.programs import KINDS, stand_in
from tests.engines.llm.llama.programs import llama as llama_cpp

OPTIONS = GenerateOptions(max_output_tokens=8)
CONVERSATION = Conversation(instructions="Be brief.", items=[Item("user", (TextPart("Hello"),))])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stand_in(tmp_path)
    return tmp_path


def make_llama(kind: str, folder: Path) -> LlamaCppLLM:
    program, model = llama_cpp(kind, folder)
    return make_llm(model, Settings(llama_exe_path=program, context_size=512))


@pytest.fixture(params=KINDS)
async def llama(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LlamaCppLLM]:
    llm = make_llama(request.param, tmp_path)
    await llm.start()
    yield llm
    await llm.close()


@pytest.fixture
async def real_llama(tmp_path: Path) -> AsyncIterator[LlamaCppLLM]:
    llm = make_llama("real", tmp_path)
    await llm.start()
    yield llm
    await llm.close()


def command(folder: Path) -> Callable[[int], list[str]]:
    model = str(folder / "tiny.gguf")
    return lambda port: [str(folder / "llama-server"), "--model", model, "--port", str(port)]


async def reply_text(llama: LlamaCppLLM, options: GenerateOptions = OPTIONS) -> str:
    chunks = [chunk async for chunk in llama.generate(CONVERSATION, options)]
    assert isinstance(chunks[-1], GenerationSummary)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


def kill(llama: LlamaCppLLM) -> int:
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


async def test_it_replies(llama: LlamaCppLLM) -> None:
    assert await reply_text(llama)


async def test_a_killed_server_is_back_for_the_next_response(llama: LlamaCppLLM) -> None:
    await reply_text(llama)
    for _ in range(2):
        dead = kill(llama)
        assert await reply_text(llama)
        assert llama.server.pid != dead
    assert llama.server.restarts == 2


async def test_closing_ends_the_process(llama: LlamaCppLLM) -> None:
    pid = llama.server.pid
    assert pid is not None
    await llama.close()
    assert not is_alive(pid)
    with pytest.raises(TransientError):
        await reply_text(llama)


async def test_concurrent_replies_do_not_interrupt_each_other(real_llama: LlamaCppLLM) -> None:
    long, short = GenerateOptions(max_output_tokens=300), GenerateOptions(max_output_tokens=5)
    async with aclosing(real_llama.generate(CONVERSATION, long)) as chunks:
        first = [await anext(chunks)]
        # Another session's reply and a third one's prefill are requested in the meantime.
        other = asyncio.create_task(reply_text(real_llama, short))
        await real_llama.prefill(Conversation(instructions="Be long.", pending_turn=UserTurn("t1")), "")
        first += [chunk async for chunk in chunks]
    assert isinstance(first[-1], GenerationSummary)
    assert (first[-1].finish, len(first)) == ("length", 301)
    assert len((await other).split()) == 5


async def test_a_cancelled_reply_does_not_delay_the_next(real_llama: LlamaCppLLM) -> None:
    endless = GenerateOptions(max_output_tokens=100_000)
    for _ in range(3):
        async with aclosing(real_llama.generate(CONVERSATION, endless)) as chunks:
            assert await anext(chunks)
        async with asyncio.timeout(10):
            assert await reply_text(real_llama)
    assert real_llama.server.restarts == 0


async def test_the_prompt_is_prefilled(folder: Path) -> None:
    llama = make_llama("stand-in", folder)
    await llama.start()
    conversation = Conversation(instructions="Be brief.", pending_turn=UserTurn("t1"))
    await llama.prefill(conversation, "")
    await asyncio.gather(*llama._llm._prefills.values())
    assert conversation.pending_turn is not None
    conversation.pending_turn.add(AudioPart(bytes(640)))
    await llama.prefill(conversation, "How")
    await asyncio.gather(*llama._llm._prefills.values())
    await llama.close()
    prefills = [json.loads(line) for line in (folder / "prefills").read_text().splitlines()]
    system = {"role": "system", "content": "Be brief."}
    assert prefills == [[system], [system, {"role": "user", "content": "How"}]]
    assert "--ctx-size 512 --n-gpu-layers 999" in (folder / "arguments").read_text()


async def test_it_stays_down_after_five_restarts(folder: Path) -> None:
    server = Supervisor("tiny", command(folder), pause_s=0.001)
    await server.start()
    (folder / "broken").touch()
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    assert server._owner is not None
    await asyncio.wait_for(asyncio.shield(server._owner), 30)
    assert (server.given_up, server.restarts, server.healthy.is_set()) == (True, RESTARTS, False)
    await server.close()


async def test_an_unresponsive_process_is_restarted(folder: Path) -> None:
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


async def test_an_endless_line_on_stderr_does_not_stop_it(folder: Path) -> None:
    (folder / "chatty").touch()
    server = Supervisor("tiny", command(folder))
    async with asyncio.timeout(60):
        await server.start()
    await server.close()


async def test_a_failed_start_reports_the_reason(folder: Path) -> None:
    (folder / "broken").touch()
    llama = make_llama("stand-in", folder)
    with pytest.raises(SetupError, match=r"llama\.cpp with tiny\.gguf does not start: error: failed to load the model"):
        await llama.start()
    await llama.close()


def test_a_missing_part_is_reported_with_its_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
            make_llm(model, settings)
