"""A real OpenAI-compatible server that others wrote: `transformers serve`, on a tiny model with random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from echosight.conversation import Conversation, Item, TextPart, UserTurn
from echosight.engines import GenerationSummary, TextChunk
from echosight.engines.llm.openai_http import from_url
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.tiny_local import write_llama
from tests.server.serving import free_port

START_S = 90


@pytest.fixture(scope="module")
def model_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the tiny model."""
    folder = tmp_path_factory.mktemp("serve")
    model = write_llama(folder / "tiny")
    (folder / "home" / "hub").mkdir(parents=True)
    port = free_port()
    program = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", program, "serve", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    log = folder / "log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/v1/models", process, log)
            yield f"http://127.0.0.1:{port}/v1#{model}"
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(10 * START_S):
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(log.read_text(errors="replace"))


async def test_it_streams_replies_and_stops_at_the_limit(model_url: str) -> None:
    llm = from_url(model_url, Settings())
    await llm.start()
    conversation = Conversation(instructions="Be brief.", items=[Item("user", (TextPart("hello world"),))])
    options = GenerateOptions(max_output_tokens=12)
    replies = [[chunk async for chunk in llm.generate(conversation, options)] for _ in range(2)]
    conversation.pending_turn = UserTurn("t1")
    await llm.prefill(conversation, "how are")
    again = [chunk async for chunk in llm.generate(conversation, options)]
    await llm.close()
    *chunks, summary = replies[0]
    assert isinstance(summary, GenerationSummary)
    assert (summary.finish, summary.usage.output_text) == ("length", 12)
    assert len(chunks) > 1
    assert all(isinstance(chunk, TextChunk) for chunk in chunks)
    assert replies[0] == replies[1] == again


async def test_a_missing_model_is_reported(model_url: str) -> None:
    llm = from_url(model_url.partition("#")[0], Settings())
    with pytest.raises(SetupError, match="lists no models; name one"):
        await llm.start()
    await llm.close()
