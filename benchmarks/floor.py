"""The practical floor: the cost of the same work without EchoSight. `python benchmarks/floor.py PORT`.

A bare FastAPI route, one shared Silero session of ONNX Runtime called window by window, and the stub's response sent as
it is generated: no engine interface, no limits, no pacing, no history, one protocol.
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

from benchmarks.workload import SILENCE_MS, STUB_CHUNK
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
    """One connection: detects turns and responds to them."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.buffer = bytearray()
        self.state = np.zeros((2, 1, 128), np.float32)
        self.window = np.zeros((1, 64 + WINDOW), np.float32)
        self.speech_windows = self.silence_windows = self.records = 0
        self.speaking = False
        self.response: asyncio.Task[None] | None = None

    def on_audio(self, pcm: bytes) -> None:
        self.buffer += pcm
        while len(self.buffer) >= 2 * WINDOW:
            self.window[0, :64] = self.window[0, -64:]
            self.window[0, 64:] = np.frombuffer(bytes(self.buffer[: 2 * WINDOW]), "<i2") / np.float32(32_768)
            del self.buffer[: 2 * WINDOW]
            probabilities, self.state = silero.run(None, {"input": self.window, "state": self.state, "sr": RATE})
            self.on_probability(float(probabilities[0, 0]))

    def on_probability(self, probability: float) -> None:
        if probability >= (0.35 if self.speaking and not self.silence_windows else 0.5):
            self.speech_windows, self.silence_windows = self.speech_windows + 1, 0
            if not self.speaking and self.speech_windows == 2:
                self.speaking = True
                self.stop()
        else:
            self.speech_windows, self.silence_windows = 0, self.silence_windows + 1
            if self.speaking and self.silence_windows * 32 >= SILENCE_MS:
                self.speaking = False
                self.response = asyncio.create_task(self.respond())

    def stop(self) -> None:
        if self.response is not None:
            self.response.cancel()

    async def respond(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        for n, word in enumerate(STUB_TEXT.split()):
            await asyncio.sleep(started + (n + 1) * STUB_TOKEN_S - loop.time())
            await self.send_record(None, f" {word}")
        for _ in range(STUB_CHUNKS):
            await self.send_record(base64.b64encode(wav_bytes(AudioChunk(STUB_CHUNK, 24_000))).decode(), "")
        await self.send_record(None, "\n<end>")

    async def send_record(self, audio: str | None, text: str) -> None:
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
            user.on_audio(packet["bytes"])
    user.stop()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
