"""A `.gguf` file as a chat: llama.cpp's server, run and watched over by this one."""

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

REPLY_TOKENS = 1024
"""A model that finds no end is stopped there, before its context is full."""

RESTART_S = 15.0
"""How long a turn waits for a process that is being restarted."""

# llama_cpp.server (seen with 0.3.36) sends nothing as long as the bytes since its last piece are no UTF-8, and decodes
# all of them again with each token. Half a character that is never completed, as random weights write it, silences it
# until REPLY_TOKENS are reached, for minutes, and with it whoever waits behind; closing the request changes nothing,
# for it looks whether somebody still listens only when it has a piece. Its silence ends the turn (see http/sse.py).


class LlamaCppLLM:
    """A `LLM` by llama.cpp. A process that dies is restarted; its turn fails, the next one waits for it."""

    def __init__(self, model: Path, program: Sequence[str], settings: Settings) -> None:
        self.name = model.stem

        def command(port: int) -> list[str]:
            return [*program, *_arguments(program, model, port, settings)]

        self.server = Supervisor(f"llama.cpp with {model.name}", command)
        upstream = HttpService(f"http://127.0.0.1:{self.server.port}/v1")
        self._chat = OpenAILLM(
            upstream,
            None,
            max_turns=settings.max_history_turns,
            max_tokens=min(REPLY_TOKENS, settings.context_size // 4),
            ahead=True,
        )

    async def start(self) -> None:
        """Returns when the model is loaded. Raises `SetupError`."""
        await self.server.start()
        await self._chat.start()

    async def close(self) -> None:
        await self._chat.close()
        await self.server.close()

    async def prefill(self, conversation: Conversation, text: str) -> None:
        """Have the server read the conversation so far, so that its cache holds it when the reply is wanted."""
        if self.server.healthy.is_set():
            await self._chat.prefill(conversation, text)

    async def release(self, conversation_id: str) -> None:
        await self._chat.release(conversation_id)

    async def generate(self, conversation: Conversation, options: GenerateOptions) -> AsyncGenerator[Chunk]:
        """Raises `TransientError` where the process is down and does not come up."""
        await self._wait()
        async with aclosing(self._chat.generate(conversation, options)) as pieces:
            async for piece in pieces:
                yield piece

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(0 if self.server.given_up else RESTART_S):
                await self.server.healthy.wait()
        except TimeoutError:
            raise TransientError(f"{self.server.name} is down") from None


def _arguments(program: Sequence[str], model: Path, port: int, settings: Settings) -> list[str]:
    layers = settings.gpu_layers
    shared = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    if "llama_cpp.server" in program:
        sizes = ["--n_ctx", str(settings.context_size), "--n_gpu_layers", str(layers)]
        # It answers one request at a time. As it comes, each new one cuts off the one in progress: somebody else's.
        return [*shared, *sizes, "--interrupt_requests", "false"]
    # What llama-server takes for "all" differs between its versions; more than there are means all in each.
    layers = 999 if layers < 0 else layers
    return [*shared, "--ctx-size", str(settings.context_size), "--n-gpu-layers", str(layers), "--jinja"]


def _program(settings: Settings) -> list[str]:
    """LLAMA_EXE_PATH; or llama-server, or llama-cpp-python's server, where one is installed. Raises `SetupError`.

    LLAMA_EXE_PATH may name a Python that has llama-cpp-python.
    """
    given = settings.llama_exe_path
    if given:
        found = shutil.which(Path(given).expanduser())
        if found is None:
            raise SetupError(f"LLAMA_EXE_PATH={given} is no program; it must be the path of llama-server")
        return [found, "-m", "llama_cpp.server"] if Path(found).name.startswith("python") else [found]
    if found := shutil.which("llama-server"):
        return [found]
    if find_spec("llama_cpp") is not None:
        return [sys.executable, "-m", "llama_cpp.server"]
    raise SetupError(
        "A .gguf file needs llama.cpp: install llama-server and set LLAMA_EXE_PATH to it, "
        'or uv pip install "llama-cpp-python[server]"'
    )


def chat(argument: str | None, settings: Settings) -> LlamaCppLLM:
    """`argument`: a .gguf file; LLAMA_MODEL_PATH without. Raises `SetupError`."""
    given = argument or settings.llama_model_path
    if not given:
        raise SetupError("llama.cpp needs a model: --model FILE.gguf, or set LLAMA_MODEL_PATH")
    model = Path(given).expanduser()
    if not model.is_file():
        raise SetupError(f"There is no file {model}; give --model the path of a .gguf file")
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SetupError(
                f"{model} is no GGUF file; convert_hf_to_gguf.py of llama.cpp makes one of a model's folder"
            )
    return LlamaCppLLM(model, _program(settings), settings)
