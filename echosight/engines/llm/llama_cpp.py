"""A `.gguf` file as an LLM: this server starts and supervises a llama.cpp server for it."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

from echosight.conversation import Conversation
from echosight.engines.llm.openai_http import Chunk, OpenAILLM
from echosight.engines.runtime.http_client import HttpService
from echosight.engines.runtime.retries import TransientError
from echosight.engines.runtime.supervisor import Supervisor
from echosight.errors import SetupError
from echosight.options import GenerateOptions
from echosight.settings import Settings

DEFAULT_REPLY_TOKENS = 1024
"""Limit of a reply that never ends, so that it cannot fill the model's context."""

RESTART_S = 15.0
"""How long a response waits for a server that is being restarted."""

# llama_cpp.server (tested: 0.3.36) sends nothing while the bytes since its last chunk are not valid UTF-8, and decodes
# all of them again with each token. Half a character that is never completed, as random weights write it, silences the
# server for minutes, until DEFAULT_REPLY_TOKENS are reached, and blocks the requests queued behind it. Closing the
# request does not help: the server checks for a closed connection only when it has a chunk to send. The read timeout
# ends the response instead (see runtime/sse.py).


class LlamaCppLLM:
    """An `LLM` by llama.cpp. A process that dies is restarted: its response fails and the next one waits for it."""

    def __init__(self, model: Path, program: Sequence[str], settings: Settings) -> None:
        self.name = model.stem

        def command(port: int) -> list[str]:
            return [*program, *_arguments(program, model, port, settings)]

        self.server = Supervisor(f"llama.cpp with {model.name}", command)
        service = HttpService(f"http://127.0.0.1:{self.server.port}/v1")
        self._llm = OpenAILLM(
            service,
            None,
            max_turns=settings.max_history_turns,
            max_tokens=min(DEFAULT_REPLY_TOKENS, settings.context_size // 4),
            prefill=True,
        )

    async def start(self) -> None:
        """Returns when the model is loaded. Raises `SetupError`."""
        await self.server.start()
        await self._llm.start()

    async def close(self) -> None:
        """Stop the llama.cpp server."""
        await self._llm.close()
        await self.server.close()

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """Send the conversation so far, so that the server's cache holds it when the response begins."""
        if self.server.healthy.is_set():
            await self._llm.prefill(conversation, text)

    async def release(self, conversation_id: str) -> None:
        """Stop a prefill of the conversation; unknown ids are fine."""
        await self._llm.release(conversation_id)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Raises `TransientError` where the process is down and does not come up again."""
        await self._wait_until_up()
        async with aclosing(self._llm.generate(conversation, options)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _wait_until_up(self) -> None:
        try:
            async with asyncio.timeout(0 if self.server.given_up else RESTART_S):
                await self.server.healthy.wait()
        except TimeoutError:
            raise TransientError(f"{self.server.name} is down") from None


def _arguments(program: Sequence[str], model: Path, port: int, settings: Settings) -> list[str]:
    layers = settings.gpu_layers
    common = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    if "llama_cpp.server" in program:
        sizes = ["--n_ctx", str(settings.context_size), "--n_gpu_layers", str(layers)]
        # It serves one request at a time. By default a new request interrupts the running one, of another session.
        return [*common, *sizes, "--interrupt_requests", "false"]
    # The value for "all layers" differs between versions of llama-server; more than exist means all in each of them.
    layers = 999 if layers < 0 else layers
    return [*common, "--ctx-size", str(settings.context_size), "--n-gpu-layers", str(layers), "--jinja"]


def _program(settings: Settings) -> list[str]:
    """The command: LLAMA_EXE_PATH, else an installed llama-server, else llama-cpp-python's server.

    LLAMA_EXE_PATH may name a Python that has llama-cpp-python. Raises `SetupError`.
    """
    configured = settings.llama_exe_path
    if configured:
        found = shutil.which(Path(configured).expanduser())
        if found is None:
            raise SetupError(f"LLAMA_EXE_PATH={configured} is no program; it must be the path of llama-server")
        return [found, "-m", "llama_cpp.server"] if Path(found).name.startswith("python") else [found]
    if found := shutil.which("llama-server"):
        return [found]
    if find_spec("llama_cpp") is not None:
        return [sys.executable, "-m", "llama_cpp.server"]
    raise SetupError(
        "A .gguf file needs llama.cpp: install llama-server and set LLAMA_EXE_PATH to it, "
        'or uv pip install "llama-cpp-python[server]"'
    )


def make_llm(argument: str | None, settings: Settings) -> LlamaCppLLM:
    """`argument` is a .gguf file; None means LLAMA_MODEL_PATH. Raises `SetupError`."""
    source = argument or settings.llama_model_path
    if not source:
        raise SetupError("llama.cpp needs a model: --model FILE.gguf, or set LLAMA_MODEL_PATH")
    model = Path(source).expanduser()
    if not model.is_file():
        raise SetupError(f"There is no file {model}; give --model the path of a .gguf file")
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SetupError(
                f"{model} is no GGUF file; convert_hf_to_gguf.py of llama.cpp converts a model's folder to one"
            )
    return LlamaCppLLM(model, _program(settings), settings)
