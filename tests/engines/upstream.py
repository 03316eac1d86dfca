"""A small HTTP server on a real socket that follows a script, faults included."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Headers = dict[str, str]


class Request:
    def __init__(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Reply:
    """The other end of a request. A body is chunked, and whole only once `end` was called."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.gone = asyncio.Event()
        """The client has closed the connection."""

    async def head(self, status: int = 200, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", "Transfer-Encoding: chunked", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def write(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def until_gone(self) -> None:
        """Send nothing until the client closes the connection."""
        await self._reader.read()
        self.gone.set()


Handler = Callable[[Request, Reply], Awaitable[None]]


class Server:
    """`on(path, …)` sets the handlers of the requests for a path, one after the other; the last is repeated."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[Request] = []
        self._handlers: defaultdict[str, list[Handler]] = defaultdict(list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on(self, path: str, *handlers: Handler) -> None:
        self._handlers[path] = list(handlers)

    def requests_to(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, target, _ = first.split(" ")
            request = Request(method, target, headers, body)
            self.requests.append(request)
            handlers = self._handlers[request.path] or [answer({"error": {"message": "no such path"}}, 404)]
            await (handlers.pop(0) if len(handlers) > 1 else handlers[0])(request, Reply(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def upstream() -> AsyncIterator[Server]:
    tasks: set[asyncio.Task[None]] = set()
    server: Server

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(server.serve(reader, writer)))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    server = Server(listening.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


# --- what a server may do -------------------------------------------------------------------------


def answer(value: Any, status: int = 200, retry_after: str = "") -> Handler:
    """JSON."""
    headers = {"Retry_After": retry_after} if retry_after else {}
    return body(json.dumps(value).encode(), status=status, headers=headers)


def body(
    *chunks: bytes,
    kind: str = "application/json",
    status: int = 200,
    whole: bool = True,
    headers: Headers | None = None,
) -> Handler:
    """The chunks, one after the other; not `whole`: the connection is cut after them."""

    async def handle(request: Request, reply: Reply) -> None:
        await reply.head(status, Content_Type=kind, **(headers or {}))
        for chunk in chunks:
            await reply.write(chunk)
        if whole:
            await reply.end()

    return handle


def sse(*events: Any, done: bool = True, whole: bool = True, kind: str = "text/event-stream") -> Handler:
    """Server-sent events."""
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return body(*lines, *([b"data: [DONE]\n\n"] if done else []), kind=kind, whole=whole)


def raw(data: bytes) -> Handler:
    """Bytes that may be no HTTP."""

    async def handle(request: Request, reply: Reply) -> None:
        await reply.raw(data)

    return handle


def trickle(data: bytes, kind: str = "application/json", status: int = 200) -> Handler:
    """The same bytes over and over, without end."""

    async def handle(request: Request, reply: Reply) -> None:
        await reply.head(status, Content_Type=kind)
        while True:
            await reply.write(data)
            await asyncio.sleep(0.005)

    return handle


def text(delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": delta}}]}


def finished(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def counted(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    return {
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details},
    }
