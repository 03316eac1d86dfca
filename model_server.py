"""The server: settings, engine, StreamManager, FastAPI app; and the command line."""

from __future__ import annotations

import os

# Tiny matrix products run slower on several threads, and the event loop wants the other cores for others.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from echosight import __version__
from echosight.app import create_app
from echosight.errors import SetupError
from echosight.server.manager import StreamManager
from echosight.server.transport import cut_streams
from echosight.settings import Settings

if TYPE_CHECKING:
    from echosight.server.certificate import Certificate

__all__ = ["StreamManager", "create_app", "main"]

FAREWELL_S = 1.0
"""How long a client may take to read the end of its stream once the server is told to stop."""


def where(settings: Settings) -> tuple[str, str, Certificate | None]:
    """The server's address, how phones get there, and the certificate that it serves with."""
    if not settings.https:
        host = "localhost" if settings.host in ("0.0.0.0", "127.0.0.1", "::") else settings.host
        return f"http://{_in_url(host)}:{settings.port}", "", None
    from echosight.server import certificate as https  # large, and few need it

    names = https.names_of(settings.host)
    at = f"https://{_in_url(names[0])}:{settings.port}"
    warning = "" if settings.api_tokens else "\n  Without API_TOKENS everybody in your network may use it."
    phone = f"""
{https.qr_code(f"{at}/")}

  A phone in your network opens this. It warns once: the certificate is this machine's own.{warning}

"""
    return at, phone, https.certificate(https.own_folder(), names)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def listen(settings: Settings) -> socket.socket:
    """The socket that the server is reached at. Raises `SetupError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    if os.name == "posix":  # elsewhere it means that two may have one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SetupError(f"Port {settings.port} is taken already; choose another one with --port") from error
        raise SetupError(
            f"Nobody can listen at {settings.host} port {settings.port}: {error.strerror}; see --host and --port"
        ) from error
    return listener


def greeting(settings: Settings, engine: str, at: str, phone: str = "") -> str:
    """What whoever starts the server wants to know, on one screen."""
    model = (
        ""
        if settings.model
        else """
  That is a demo: it repeats what it understood and describes pictures by their numbers.
  A real model:  uv run model_server.py --model MODEL   (a Hugging Face id, a folder, a .gguf file, a URL)"""
    )
    token = "  Routes need one of the API_TOKENS, as 'Authorization: Bearer …'.\n" if settings.api_tokens else ""
    return f"""
  EchoSight {__version__} answers with: {engine}{model}

  Browser    {at}/
{phone}  Terminal   uv run python -m echosight.client.say hello.wav --url {at}
  curl       curl -N -H 'uid: me' -H 'Content-Type: application/json' -d @request.json {at}/completions
  Realtime   ws{at.removeprefix("http")}/v1/realtime   (any OpenAI Realtime client)
{token}
  API at {at}/docs · health at /health · stop with Ctrl+C
"""


def _no_fault_of_ours(record: logging.LogRecord) -> bool:
    """uvicorn reports as our errors what clients do: text that is no UTF-8, and handshakes that were refused."""
    if isinstance(record.exc_info, tuple) and isinstance(record.exc_info[1], UnicodeDecodeError):
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return "without completing handshake" not in str(record.msg)


class Server(uvicorn.Server):
    """Tells those who wait for an answer that it is about to end, while they still can be told."""

    def __init__(self, config: uvicorn.Config, manager: StreamManager) -> None:
        super().__init__(config)
        self._manager = manager

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        with contextlib.suppress(RuntimeError):  # it has not begun yet
            asyncio.get_running_loop().call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._manager.leave()
        asyncio.get_running_loop().call_later(FAREWELL_S, cut_streams)


def main() -> None:
    """`uv run model_server.py`."""
    settings = Settings.load()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs every request
    try:
        listener = listen(settings)
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})  # 0 asks for any that is free
        app = create_app(settings)
        at, phone, own = where(settings)
    except SetupError as error:
        sys.exit(f"model_server.py: {error.message}")
    except OSError as error:
        sys.exit(f"model_server.py: the certificate cannot be kept: {error}")
    manager: StreamManager = app.state.manager
    server = Server(_config(app, settings, own), manager)
    logging.getLogger("uvicorn.error").addFilter(_no_fault_of_ours)

    def loaded() -> None:
        if manager.failed:
            server.should_exit = True
        else:  # what was loaded stays: the collector need not look at it again and again
            gc.collect()
            gc.freeze()

    manager.on_loaded = loaded
    print(greeting(settings, manager.engine.name, at, phone), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if manager.failed:
        sys.exit(f"model_server.py: {manager.failed.message}")


def _config(app: FastAPI, settings: Settings, own: Certificate | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level=settings.log_level if settings.log_level == "debug" else "warning",
        ws_max_size=settings.max_message_bytes,
        # Speech hardly gets smaller by it, and pays for the attempt with every frame.
        ws_per_message_deflate=False,
        # A phone that changes its network leaves a socket that nobody closes, and cannot come back until that is found.
        ws_ping_interval=10,
        ws_ping_timeout=10,
        timeout_graceful_shutdown=3,
        ssl_certfile=own.certificate if own else None,
        ssl_keyfile=own.key if own else None,
    )


if __name__ == "__main__":
    main()
