"""A process with the interface of llama-server: `python stand_in.py --model FILE --port PORT …`.

Its reply is its process id. Files in the model's folder change it: with `broken` it does not start, with `ill` it is
unhealthy, with `chatty` it writes a very long line to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
model = Path(options["--model"])


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if model.with_name("ill").exists():
            self.send_error(503)
        elif self.path == "/health":
            self.respond("application/json", b'{"status":"ok"}')
        else:
            self.respond("application/json", json.dumps({"data": [{"id": model.name}]}).encode())

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not payload.get("stream"):
            with model.with_name("prefills").open("a") as file:
                file.write(json.dumps(payload["messages"]) + "\n")
            self.respond("application/json", b'{"choices":[]}')
            return
        event = {"choices": [{"delta": {"content": str(os.getpid())}, "finish_reason": "stop"}]}
        self.respond("text/event-stream", b"data: " + json.dumps(event).encode() + b"\n\ndata: [DONE]\n\n")

    def respond(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if model.with_name("broken").exists():
    sys.exit("error: failed to load the model")
if model.with_name("chatty").exists():
    sys.stderr.write("." * 1_000_000)
model.with_name("arguments").write_text(" ".join(sys.argv[1:]))
ThreadingHTTPServer(("127.0.0.1", int(options["--port"])), Handler).serve_forever()
