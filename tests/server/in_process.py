"""A server in the test's own event loop, with an engine of the test: real sockets, and no start of a process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from echosight.app import create_app
from echosight.engines import Engine
from echosight.server.manager import StreamManager
from echosight.settings import Settings
from tests.server.serving import Addresses


@dataclass(frozen=True)
class LocalServer(Addresses):
    """A server in this process."""

    manager: StreamManager
    port: int


@asynccontextmanager
async def local_server(folder: Path, engine: Engine, **settings: Any) -> AsyncGenerator[LocalServer]:
    """A server that is ready; it is stopped at the end."""
    app = create_app(Settings(log_dir=folder, **settings), engine)
    manager: StreamManager = app.state.manager
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            await manager.engine.load_finished.wait()
            yield LocalServer(manager, listener.getsockname()[1])
        finally:
            server.should_exit = True
            await serving
