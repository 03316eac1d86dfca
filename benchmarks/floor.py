"""The practical floor: what the same work costs with nothing around it. `python benchmarks/floor.py PORT`.

A bare FastAPI route, one shared Silero session of ONNX Runtime called window by window, and the stub's answer sent as
it comes: no interface, no bounds, no pacing, no history, no second client of any other kind.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnxruntime
import orjson
import uvicorn
from fastapi import FastAPI, WebSocket

from benchmarks.workload import PIECE, SILENCE_MS
from echosight.audio.formats import wav_bytes
from echosight.audio.silero import MODEL_PATH, WINDOW
from echosight.engines.stub import STUB_CHUNKS, STUB_TEXT, STUB_TOKEN_S
from echosight.media import AudioChunk

app = FastAPI()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
silero = onnxruntime.InferenceSession(str(MODEL_PATH), options, providers=["CPUExecutionProvider"])
RATE = np.array(16_000)


class User:
    """Finds turns and answers them, in one object."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.loose = bytearray()
        self.state = np.zeros((2, 1, 128), np.float32)
        self.window = np.zeros((1, 64 + WINDOW), np.float32)
        self.run = self.silence = self.records = 0
        self.speaking = False
        self.answer: asyncio.Task[None] | None = None

    def hear(self, pcm: bytes) -> None:
        self.loose += pcm
        while len(self.loose) >= 2 * WINDOW:
            self.window[0, :64] = self.window[0, -64:]
            self.window[0, 64:] = np.frombuffer(bytes(self.loose[: 2 * WINDOW]), "<i2") / np.float32(32_768)
            del self.loose[: 2 * WINDOW]
            found, self.state = silero.run(None, {"input": self.window, "state": self.state, "sr": RATE})
            self.judge(float(found[0, 0]))

    def judge(self, probability: float) -> None:
        if probability >= (0.35 if self.speaking and not self.silence else 0.5):
            self.run, self.silence = self.run + 1, 0
            if not self.speaking and self.run == 2:
                self.speaking = True
                self.stop()
        else:
            self.run, self.silence = 0, self.silence + 1
            if self.speaking and self.silence * 32 >= SILENCE_MS:
                self.speaking = False
                self.answer = asyncio.create_task(self.speak())

    def stop(self) -> None:
        if self.answer is not None:
            self.answer.cancel()

    async def speak(self) -> None:
        clock = asyncio.get_running_loop()
        began = clock.time()
        for n, word in enumerate(STUB_TEXT.split()):
            await asyncio.sleep(began + (n + 1) * STUB_TOKEN_S - clock.time())
            await self.record(None, f" {word}")
        for _ in range(STUB_CHUNKS):
            await self.record(base64.b64encode(wav_bytes(AudioChunk(PIECE, 24_000))).decode(), "")
        await self.record(None, "\n<end>")

    async def record(self, audio: str | None, text: str) -> None:
        self.records += 1
        choice = {"role": "assistant", "audio": audio, "text": text, "finish_reason": "processing"}
        record = {"id": "floor", "response_id": self.records, "choices": [choice]}
        await self.socket.send_text(orjson.dumps(record).decode())


@app.websocket("/ws/stream")
async def stream(socket: WebSocket) -> None:
    await socket.accept()
    user = User(socket)
    while (packet := await socket.receive())["type"] != "websocket.disconnect":
        if packet.get("bytes"):
            user.hear(packet["bytes"])
    user.stop()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
