"""`python -m echosight.client.say hello.wav`: say a recording to a running server, hear and read what it answers.

Without ``--live`` the recording is one whole turn (POST /completions); ``--json`` prints the body of that request, for
curl. With ``--live`` it is sent over /ws/stream as a microphone would, 20 ms at a time, and the server finds its turns.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import mimetypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson
import websockets

from echosight.audio.formats import decode_audio, wav_bytes
from echosight.audio.resampling import resample
from echosight.errors import EchoSightError
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk

FRAME_S = 0.02
PATIENCE_S = 30.0
OUTPUT_HZ = 24_000


class Speaker:
    """Collects the answer's speech; plays it as it comes where there is a loudspeaker."""

    def __init__(self, play: bool) -> None:
        self.pcm = bytearray()
        self._stream: Any = None
        if play:
            with contextlib.suppress(Exception):  # no PortAudio, no device: there are many ways to be silent
                import sounddevice  # type: ignore[import-untyped]

                self._stream = sounddevice.RawOutputStream(OUTPUT_HZ, channels=1, dtype="int16")
                self._stream.start()

    @property
    def audible(self) -> bool:
        return self._stream is not None

    def add(self, pcm: bytes) -> None:
        self.pcm += pcm
        if self._stream is not None:
            self._stream.write(pcm)

    def hush(self) -> None:
        """Drop what is not played yet."""
        if self._stream is not None:
            self._stream.abort()
            self._stream.start()

    def close(self, out: Path | None) -> None:
        if self._stream is not None:
            self._stream.stop()
        if self.pcm and (out or not self.audible):
            path = out or Path("answer.wav")
            path.write_bytes(wav_bytes(AudioChunk(bytes(self.pcm), OUTPUT_HZ)))
            print(f"[{len(self.pcm) / 2 / OUTPUT_HZ:.1f} s of speech saved to {path}]")


def main() -> None:
    """Say a recording to a server. Exits with 1 and a sentence where that fails."""
    args = _arguments()
    speaker = Speaker(play=args.out is None and not args.json)
    try:
        if args.json:
            print(orjson.dumps(_request(args)).decode())
        elif args.live:
            asyncio.run(_live(args, speaker))
        else:
            _one_shot(args, speaker)
    except (EchoSightError, OSError, httpx.HTTPError, websockets.WebSocketException, TimeoutError) as error:
        sys.exit(f"say: {_reason(error, args.url)}")
    finally:
        speaker.close(args.out)


def _reason(error: Exception, url: str) -> str:
    """What to tell, and what helps where no server runs. An `OSError` that names no file is one of the network."""
    unreached = isinstance(error, OSError) and error.filename is None and not isinstance(error, TimeoutError)
    if unreached or isinstance(error, httpx.ConnectError):
        return f"nobody answers at {url} ({error}); `uv run model_server.py` starts a server, --url names another"
    return str(error) or type(error).__name__


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m echosight.client.say", description=__doc__)
    parser.add_argument("recording", nargs="?", type=Path, help="a WAV, FLAC, OGG or MP3 file")
    parser.add_argument("--text", help="type this instead of, or beside, the recording")
    parser.add_argument("--image", type=Path, action="append", default=[], help="show a picture with it")
    parser.add_argument("--live", action="store_true", help="as a microphone would, at real time")
    parser.add_argument("--json", action="store_true", help="print the request instead of sending it")
    parser.add_argument("--out", type=Path, help="save the answer's speech as a WAV instead of playing it")
    parser.add_argument("--url", default="http://127.0.0.1:32550", help="the server (%(default)s)")
    parser.add_argument("--uid", help="the name of this session (say, or say-live)")
    parser.add_argument("--token", default=os.environ.get("ECHOSIGHT_TOKEN"), help="one of the server's API_TOKENS")
    args = parser.parse_args()
    if not (args.recording or args.text or args.image):
        parser.error("give a recording, --text or --image")
    # Apart, so that what is said live is not taken for the echo of an answer that was saved a moment ago.
    args.uid = args.uid or ("say-live" if args.live else "say")
    return args


def _headers(args: argparse.Namespace) -> dict[str, str]:
    return {"uid": args.uid} | ({"Authorization": f"Bearer {args.token}"} if args.token else {})


def _recording(path: Path) -> AudioChunk:
    return decode_audio(path.read_bytes(), path.suffix[1:] or "wav")


def _picture(path: Path) -> dict[str, Any]:
    kind = mimetypes.guess_type(path.name)[0] or "image/jpeg"
    url = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _body(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "stream": True}


def _request(args: argparse.Namespace) -> dict[str, Any]:
    content = [_picture(path) for path in args.image]
    if args.recording:
        wav = base64.b64encode(wav_bytes(_recording(args.recording))).decode()
        content.append({"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}})
    if args.text:
        content.append({"type": "text", "text": args.text})
    return _body(content)


def _one_shot(args: argparse.Namespace, speaker: Speaker) -> None:
    url = f"{args.url}/completions"
    with httpx.stream("POST", url, json=_request(args), headers=_headers(args), timeout=PATIENCE_S) as response:
        if response.is_error:
            response.read()
            sys.exit(f"say: {response.status_code}: {response.text}")
        for line in response.iter_lines():
            if line.startswith("data:"):
                _show(orjson.loads(line[5:]), speaker)


def _show(record: dict[str, Any], speaker: Speaker) -> None:
    """Print and play one answer record."""
    if "error" in record:
        raise EchoSightError(str(record["error"]))
    for choice in record.get("choices", []):
        text = choice["text"]
        if choice["finish_reason"] != "processing":
            print(f" [{choice['finish_reason']}]" if choice["finish_reason"] != "stop" else "")
        elif text == "assistant:\n":
            continue
        else:
            print(text, end="", flush=True)
            if choice["audio"]:
                speaker.add(base64.b64decode(choice["audio"])[44:])


async def _live(args: argparse.Namespace, speaker: Speaker) -> None:
    url = f"ws{args.url.removeprefix('http')}/ws/stream?uid={quote(args.uid)}"
    async with asyncio.timeout(None) as patience:
        async with websockets.connect(url, additional_headers=_headers(args), max_size=None) as socket:
            rate = INPUT_SAMPLE_RATE
            await socket.send(orjson.dumps({"type": "subscribe", "sample_rate": rate, "events": True}).decode())
            if args.image or args.text:
                content = [_picture(path) for path in args.image]
                content += [{"type": "text", "text": args.text}] if args.text else []
                await socket.send(orjson.dumps(_body(content)).decode())
            talking = asyncio.create_task(_talk(socket, args.recording))
            try:
                await _listen(socket, speaker, patience)
            finally:
                talking.cancel()


async def _talk(socket: websockets.ClientConnection, path: Path | None) -> None:
    """Send the recording in frames at real time, then an empty body, which is acknowledged."""
    began = asyncio.get_running_loop().time()
    for number, frame in enumerate(_frames(path)):
        await asyncio.sleep(began + number * FRAME_S - asyncio.get_running_loop().time())
        await socket.send(frame)
    await socket.send('{"messages": []}')


def _frames(path: Path | None) -> Iterator[bytes]:
    """The recording as PCM16 frames, then two seconds of the quiet that lets the server see its end."""
    pcm = resample(_recording(path), INPUT_SAMPLE_RATE).pcm if path else b""
    pcm += np.zeros(2 * INPUT_SAMPLE_RATE, "<i2").tobytes()
    size = 2 * int(INPUT_SAMPLE_RATE * FRAME_S)
    for at in range(0, len(pcm), size):
        yield pcm[at : at + size]


async def _listen(socket: websockets.ClientConnection, speaker: Speaker, patience: asyncio.Timeout) -> None:
    """Show what comes until the recording is over and its last answer is complete."""
    waiting, over = True, False
    async for message in socket:
        note = orjson.loads(message)
        match note:
            case {"type": "speech_started"}:
                waiting = True
                speaker.hush()
            case {"type": "transcript", "final": True, "text": text}:
                print(f"\n> {text}")
            case {"type": "waterfall", "waterfall_ms": stages}:
                waiting = False
                print("  " + " · ".join(f"{k} {v:.0f} ms" for k, v in stages.items() if v is not None))
            case {"choices": {"finish_reason": ""}}:
                over = True
                patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
            case {"error": str(problem)}:
                raise EchoSightError(problem)
            case {"choices": list()} | {"error": dict()}:
                _show(note, speaker)
        if over and not waiting:
            return


if __name__ == "__main__":
    main()
