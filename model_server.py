"""The program: settings, listening socket, banner and uvicorn around the application.

`uv run model_server.py` starts it. Also for other servers: `uvicorn model_server:app` and
`uvicorn --factory model_server:create_app`, with settings from the environment.
"""

from __future__ import annotations

import os

# OpenBLAS runs our tiny matrix products slower on several threads, and would take cores from other work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from echosight import __version__
from echosight.app import create_app
from echosight.errors import SetupError
from echosight.server.manager import StreamManager
from echosight.server.transport import abort_sse_streams, take_over_sse_shutdown
from echosight.settings import Settings

if TYPE_CHECKING:
    from echosight.server.certificate import Certificate

__all__ = ["StreamManager", "create_app", "main"]

SHUTDOWN_GRACE_S = 1.0
"""How long clients may take to read the end of their stream once the server is told to stop."""


def __getattr__(name: str) -> Any:
    """`model_server.app`, made when it is first used: importing this module loads no engine."""
    if name == "app":
        globals()["app"] = create_app()
        return globals()["app"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def public_address(settings: Settings) -> tuple[str, str, Certificate | None]:
    """(URL of the server, banner lines for phones, certificate); the latter two only with HTTPS."""
    if not settings.https:
        host = "localhost" if settings.host in ("0.0.0.0", "127.0.0.1", "::") else settings.host
        return f"http://{_in_url(host)}:{settings.port}", "", None
    from echosight.server import certificate  # its imports are large, and few users need it

    names = certificate.host_names(settings.host)
    url = f"https://{_in_url(names[0])}:{settings.port}"
    warning = "" if settings.api_tokens else "\n  Without API_TOKENS everybody in your network may use it."
    phone = f"""
{certificate.qr_code(f"{url}/")}

  Open this on a phone in your network. The browser warns once, because the certificate is self-signed.{warning}

"""
    return url, phone, certificate.load_or_create(certificate.data_dir(), names)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises `SetupError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    if os.name == "posix":  # on Windows SO_REUSEADDR lets two servers bind the same port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SetupError(f"Port {settings.port} is already in use; choose another one with --port") from error
        raise SetupError(
            f"Cannot listen on {_in_url(settings.host)}:{settings.port}: {error.strerror}; see --host and --port"
        ) from error
    return listener


def startup_banner(settings: Settings, engine: str, url: str, phone: str = "") -> str:
    """How to reach and use the server, on one screen."""
    model = (
        ""
        if settings.model
        else """
  This is a demo: it repeats what it understood and describes images by their numbers.
  A real model:  uv run model_server.py --model MODEL   (a Hugging Face id, a folder, a .gguf file, a URL)"""
    )
    token = "  Requests need one of the API_TOKENS, as 'Authorization: Bearer …'.\n" if settings.api_tokens else ""
    return f"""
  EchoSight {__version__} responds with: {engine}{model}

  Browser    {url}/
{phone}  Terminal   uv run python -m echosight.client.say hello.wav --url {url}
  curl       curl -N -H 'uid: me' -H 'Content-Type: application/json' -d @request.json {url}/completions
  Realtime   ws{url.removeprefix("http")}/v1/realtime   (any OpenAI Realtime client)
{token}
  API at {url}/docs · health at /health · stop with Ctrl+C
"""


class _ClientErrorFilter(logging.Filter):
    """uvicorn logs mistakes of clients as errors of the server: text that is not UTF-8, and refused handshakes."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.exc_info, tuple) and isinstance(record.exc_info[1], UnicodeDecodeError):
            record.exc_info = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return "without completing handshake" not in str(record.msg)


class Server(uvicorn.Server):
    """uvicorn's server. It ends SSE streams with a record, and stops where the engine cannot load."""

    def __init__(self, config: uvicorn.Config, manager: StreamManager) -> None:
        super().__init__(config)
        self._manager = manager
        self._loading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loading = asyncio.create_task(self._on_loaded())

    async def _on_loaded(self) -> None:
        await self._manager.engine.load_finished.wait()
        if self._manager.engine.load_error:
            self.should_exit = True
        else:  # loaded objects live as long as the server: the garbage collector need not visit them again
            gc.collect()
            gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        with contextlib.suppress(RuntimeError):  # the event loop does not run yet
            asyncio.get_running_loop().call_soon_threadsafe(self._begin_shutdown)

    def _begin_shutdown(self) -> None:
        self._manager.begin_shutdown()
        asyncio.get_running_loop().call_later(SHUTDOWN_GRACE_S, abort_sse_streams)


def main() -> None:
    """`uv run model_server.py`."""
    settings = Settings.load()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs every request
    try:
        listener = listen(settings)
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})  # port 0: the one that was free
        app = create_app(settings)
        url, phone, certificate = public_address(settings)
    except SetupError as error:
        sys.exit(f"model_server.py: {error.message}")
    except OSError as error:
        sys.exit(f"model_server.py: the certificate cannot be saved: {error}")
    manager: StreamManager = app.state.manager
    server = Server(_uvicorn_config(app, settings, certificate), manager)
    logging.getLogger("uvicorn.error").addFilter(_ClientErrorFilter())
    take_over_sse_shutdown()
    print(startup_banner(settings, manager.engine.name, url, phone), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if manager.engine.load_error:
        sys.exit(f"model_server.py: {manager.engine.load_error.message}")


def _uvicorn_config(app: FastAPI, settings: Settings, certificate: Certificate | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level=settings.log_level if settings.log_level == "debug" else "warning",
        ws_max_size=settings.max_message_bytes,
        # Speech hardly gets smaller by compression, and every frame would pay for the attempt.
        ws_per_message_deflate=False,
        # Pings detect half-open sockets (a phone that changed network); until then the client cannot reconnect.
        ws_ping_interval=10,
        ws_ping_timeout=10,
        timeout_graceful_shutdown=3,
        ssl_certfile=certificate.cert_path if certificate else None,
        ssl_keyfile=certificate.key_path if certificate else None,
    )


if __name__ == "__main__":
    main()
