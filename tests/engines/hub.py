"""A Hugging Face hub on a real socket, of one repository: the second half of a large file waits for `gate`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000


class Hub(ThreadingHTTPServer):
    """Serves the files of `folder` as those of any repository."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.gate = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        first, *rest = self._answer()
        self.wfile.write(first)
        for part in rest:
            self.server.gate.wait(60)
            self.wfile.write(part)

    def _answer(self) -> list[bytes]:
        """Send the head; the body in parts."""
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            return self._file(self.server.folder / path.rpartition("/")[2])
        if "/revision/" in path:
            return self._json(
                {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self._names()]}
            )
        if "/tree/" in path:
            return self._json([{"type": "file", "path": n, "size": self._size(n), "oid": n} for n in self._names()])
        self.send_error(404)
        return [b""]

    def _names(self) -> list[str]:
        return sorted(file.name for file in self.server.folder.iterdir())

    def _size(self, name: str) -> int:
        return (self.server.folder / name).stat().st_size

    def _json(self, value: object) -> list[bytes]:
        data = json.dumps(value).encode()
        self._head("application/json", data)
        return [data]

    def _file(self, file: Path) -> list[bytes]:
        if not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return [b""]
        data = file.read_bytes()
        self._head("application/octet-stream", data)
        return [data[: len(data) // 2], data[len(data) // 2 :]] if len(data) > LARGE else [data]

    def _head(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    server = Hub(folder)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
