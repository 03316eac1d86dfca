"""A process that speaks as llama-server does: `python stand_in.py --model FILE --port PORT …`.

It answers with the number of its process. Files beside the model: `broken` keeps it from starting, `ill` from health;
with `chatty` it says much on one line.
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
            self.generate("application/json", b'{"status":"ok"}')
        else:
            self.generate("application/json", json.dumps({"data": [{"id": model.name}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not asked.get("stream"):
            with model.with_name("ahead").open("a") as file:
                file.write(json.dumps(asked["messages"]) + "\n")
            self.generate("application/json", b'{"choices":[]}')
            return
        said = {"choices": [{"delta": {"content": str(os.getpid())}, "finish_reason": "stop"}]}
        self.generate("text/event-stream", b"data: " + json.dumps(said).encode() + b"\n\ndata: [DONE]\n\n")

    def generate(self, kind: str, data: bytes) -> None:
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
