"""Supervised llama.cpp: a stand-in process, and the real one where LLAMA_EXE_PATH and LLAMA_MODEL_PATH are set."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from echosight.conversation import AudioPart, Conversation, Item, OpenTurn, TextPart
from echosight.engines import Summary, TextPiece
from echosight.engines.llama import LlamaChat, chat
from echosight.engines.retries import Unavailable
from echosight.engines.supervisor import RESTARTS, Supervisor
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

STAND_IN = Path(__file__).with_name("llama_stand_in.py")
OPTIONS = GenerateOptions(max_output_tokens=8)
TALK = Conversation(instructions="Be brief.", items=[Item("user", (TextPart("Hello"),))])

REAL = bool(os.environ.get("LLAMA_EXE_PATH") and os.environ.get("LLAMA_MODEL_PATH"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    program = tmp_path / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    program.chmod(0o755)
    return tmp_path


def stand_in(folder: Path) -> LlamaChat:
    settings = Settings(llama_exe_path=str(folder / "llama-server"), llama_model_path="", context_size=512)
    return chat(str(folder / "tiny.gguf"), settings)


@pytest.fixture(params=["stand-in", "real"] if REAL else ["stand-in"])
async def llama(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[LlamaChat]:
    made = stand_in(folder) if request.param == "stand-in" else chat(None, Settings(context_size=512))
    await made.start()
    yield made
    await made.close()


async def said(llama: LlamaChat) -> str:
    pieces = [piece async for piece in llama.reply(TALK, OPTIONS)]
    assert isinstance(pieces[-1], Summary)
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))


def killed(llama: LlamaChat) -> int:
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


async def test_it_answers(llama: LlamaChat) -> None:
    assert await said(llama)


async def test_killed_it_is_back_for_the_next_turn(llama: LlamaChat) -> None:
    await said(llama)
    for _ in range(2):
        dead = killed(llama)
        assert await said(llama)
        assert llama.server.pid != dead
    assert llama.server.restarts == 2


async def test_it_ends_with_the_server(llama: LlamaChat) -> None:
    pid = llama.server.pid
    assert pid is not None
    await llama.close()
    assert not is_alive(pid)
    with pytest.raises(Unavailable):
        await said(llama)


async def test_the_prompt_is_sent_ahead(folder: Path) -> None:
    llama = stand_in(folder)
    await llama.start()
    talk = Conversation(instructions="Be brief.", open=OpenTurn("t1"))
    await llama.prefill(talk, "")
    await asyncio.gather(*llama._chat._prefills.values())
    assert talk.open is not None
    talk.open.add(AudioPart(bytes(640)))
    await llama.prefill(talk, "How")
    await asyncio.gather(*llama._chat._prefills.values())
    await llama.close()
    ahead = [json.loads(line) for line in (folder / "ahead").read_text().splitlines()]
    system = {"role": "system", "content": "Be brief."}
    assert ahead == [[system], [system, {"role": "user", "content": "How"}]]
    assert "--ctx-size 512 --n-gpu-layers 999" in (folder / "arguments").read_text()


async def test_it_is_left_down_after_five_restarts(folder: Path) -> None:
    def command(port: int) -> list[str]:
        return [sys.executable, str(STAND_IN), "--model", str(folder / "tiny.gguf"), "--port", str(port)]

    server = Supervisor("tiny", command, pause_s=0.001)
    await server.start()
    (folder / "broken").touch()
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    assert server._owner is not None
    await asyncio.wait_for(asyncio.shield(server._owner), 30)
    assert (server.down, server.restarts, server.up.is_set()) == (True, RESTARTS, False)
    await server.close()


async def test_one_that_does_not_answer_is_restarted(folder: Path) -> None:
    def command(port: int) -> list[str]:
        return [sys.executable, str(STAND_IN), "--model", str(folder / "tiny.gguf"), "--port", str(port)]

    server = Supervisor("tiny", command, check_s=0.05, pause_s=0.001)
    await server.start()
    first = server.pid
    (folder / "ill").touch()
    while server.up.is_set():
        await asyncio.sleep(0.01)
    (folder / "ill").unlink()
    await asyncio.wait_for(server.up.wait(), 30)
    assert server.pid != first
    await server.close()


async def test_what_keeps_it_from_starting_is_told(folder: Path) -> None:
    (folder / "broken").touch()
    llama = stand_in(folder)
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
