"""Sends a recording, a text or an image to a running server, and prints and plays the response.

    python -m echosight.client.say hello.wav

Without ``--live`` the recording is one complete turn (POST /completions); ``--json`` prints the body of that request,
for curl. With ``--live`` it is sent over /ws/stream like a microphone's audio, 20 ms at a time, and the server detects
the turns.
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
TIMEOUT_S = 30.0
OUTPUT_SAMPLE_RATE = 24_000
WAV_HEADER_BYTES = 44


class AudioPlayer:
    """Collects the response's speech, and plays it as it arrives if the machine has a loudspeaker."""

    def __init__(self, play: bool) -> None:
        self.pcm = bytearray()
        self._stream: Any = None
        if play:
            # Without sounddevice, PortAudio or a device the speech is saved instead; each fails with its own exception.
            with contextlib.suppress(Exception):
                import sounddevice  # type: ignore[import-untyped]

                self._stream = sounddevice.RawOutputStream(OUTPUT_SAMPLE_RATE, channels=1, dtype="int16")
                self._stream.start()

    @property
    def audible(self) -> bool:
        return self._stream is not None

    def add(self, pcm: bytes) -> None:
        """Append mono PCM16 at 24 kHz."""
        self.pcm += pcm
        if self._stream is not None:
            self._stream.write(pcm)

    def flush(self) -> None:
        """Drop the speech that is not played yet."""
        if self._stream is not None:
            self._stream.abort()
            self._stream.start()

    def close(self, out: Path | None) -> None:
        """Play the rest. Speech that was not audible is saved to `out`, or to ``answer.wav``."""
        if self._stream is not None:
            self._stream.stop()
        if self.pcm and (out or not self.audible):
            path = out or Path("answer.wav")
            chunk = AudioChunk(bytes(self.pcm), OUTPUT_SAMPLE_RATE)
            path.write_bytes(wav_bytes(chunk))
            print(f"[{chunk.seconds:.1f} s of speech saved to {path}]")


def main() -> None:
    """The command line. A failure prints one sentence and exits with status 1."""
    args = _parse_args()
    player = AudioPlayer(play=args.out is None and not args.json)
    try:
        if args.json:
            print(orjson.dumps(_request_body(args)).decode())
        elif args.live:
            asyncio.run(_send_live(args, player))
        else:
            _send_turn(args, player)
    except (EchoSightError, OSError, httpx.HTTPError, websockets.WebSocketException, TimeoutError) as error:
        sys.exit(f"say: {_error_text(error, args.url)}")
    finally:
        player.close(args.out)


def _error_text(error: Exception, url: str) -> str:
    """One sentence, with the remedy if no server runs. An `OSError` without a file name is a network error."""
    is_network_error = isinstance(error, OSError) and error.filename is None and not isinstance(error, TimeoutError)
    if is_network_error or isinstance(error, httpx.ConnectError):
        return f"cannot connect to {url} ({error}); start a server with `uv run model_server.py`, or pass --url"
    return str(error) or type(error).__name__


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m echosight.client.say", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recording", nargs="?", type=Path, help="a WAV, FLAC, OGG or MP3 file")
    parser.add_argument("--text", help="typed text, instead of the recording or in addition to it")
    parser.add_argument("--image", type=Path, action="append", default=[], help="an image to send; may be repeated")
    parser.add_argument("--live", action="store_true", help="stream the recording in real time, like a microphone")
    parser.add_argument("--json", action="store_true", help="print the request instead of sending it")
    parser.add_argument("--out", type=Path, help="save the response's speech as a WAV file instead of playing it")
    parser.add_argument("--url", default="http://127.0.0.1:32550", help="address of the server (default: %(default)s)")
    parser.add_argument("--uid", help="id of the session (default: say, or say-live with --live)")
    parser.add_argument(
        "--token", default=os.environ.get("ECHOSIGHT_TOKEN"), help="one of the server's API_TOKENS ($ECHOSIGHT_TOKEN)"
    )
    args = parser.parse_args()
    if not (args.recording or args.text or args.image):
        parser.error("nothing to send: give a recording, --text or --image")
    # Two sessions: in one, live speech that repeats an earlier response would be dropped as its echo.
    args.uid = args.uid or ("say-live" if args.live else "say")
    return args


def _headers(args: argparse.Namespace) -> dict[str, str]:
    return {"uid": args.uid} | ({"Authorization": f"Bearer {args.token}"} if args.token else {})


def _load_recording(path: Path) -> AudioChunk:
    return decode_audio(path.read_bytes(), path.suffix[1:] or "wav")


def _image_item(path: Path) -> dict[str, Any]:
    media_type = mimetypes.guess_type(path.name)[0] or "image/jpeg"
    url = f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _message_body(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "stream": True}


def _request_body(args: argparse.Namespace) -> dict[str, Any]:
    content = [_image_item(path) for path in args.image]
    if args.recording:
        wav = base64.b64encode(wav_bytes(_load_recording(args.recording))).decode()
        content.append({"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}})
    if args.text:
        content.append({"type": "text", "text": args.text})
    return _message_body(content)


def _send_turn(args: argparse.Namespace, player: AudioPlayer) -> None:
    url = f"{args.url}/completions"
    body = _request_body(args)
    with httpx.stream("POST", url, json=body, headers=_headers(args), timeout=TIMEOUT_S) as response:
        if response.is_error:
            response.read()
            sys.exit(f"say: {response.status_code}: {response.text}")
        for line in response.iter_lines():
            if line.startswith("data:"):
                _print_record(orjson.loads(line[5:]), player)


def _print_record(record: dict[str, Any], player: AudioPlayer) -> None:
    """Print and play one record of the response. Raises `EchoSightError` for an error record."""
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
                player.add(base64.b64decode(choice["audio"])[WAV_HEADER_BYTES:])


async def _send_live(args: argparse.Namespace, player: AudioPlayer) -> None:
    url = f"ws{args.url.removeprefix('http')}/ws/stream?uid={quote(args.uid)}"
    async with asyncio.timeout(None) as deadline:
        async with websockets.connect(url, additional_headers=_headers(args), max_size=None) as socket:
            subscribe = {"type": "subscribe", "sample_rate": INPUT_SAMPLE_RATE, "events": True}
            await socket.send(orjson.dumps(subscribe).decode())
            if args.image or args.text:
                content = [_image_item(path) for path in args.image]
                content += [{"type": "text", "text": args.text}] if args.text else []
                await socket.send(orjson.dumps(_message_body(content)).decode())
            sending = asyncio.create_task(_send_audio(socket, args.recording))
            try:
                await _receive(socket, player, deadline)
            finally:
                sending.cancel()


async def _send_audio(socket: websockets.ClientConnection, path: Path | None) -> None:
    """Send the recording in real time, then an empty body: the server's acknowledgement of it marks the end."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number, frame in enumerate(_frames(path)):
        await asyncio.sleep(started + number * FRAME_S - loop.time())
        await socket.send(frame)
    await socket.send('{"messages": []}')


def _frames(path: Path | None) -> Iterator[bytes]:
    """The recording as PCM16 frames, then two seconds of silence, in which the server detects the end of the turn."""
    pcm = resample(_load_recording(path), INPUT_SAMPLE_RATE).pcm if path else b""
    pcm += np.zeros(2 * INPUT_SAMPLE_RATE, "<i2").tobytes()
    size = 2 * int(INPUT_SAMPLE_RATE * FRAME_S)
    for start in range(0, len(pcm), size):
        yield pcm[start : start + size]


async def _receive(socket: websockets.ClientConnection, player: AudioPlayer, deadline: asyncio.Timeout) -> None:
    """Print the server's records until the recording is sent and the last response is complete."""
    response_pending, recording_sent = True, False
    async for message in socket:
        record = orjson.loads(message)
        match record:
            case {"type": "speech_started"}:
                response_pending = True
                player.flush()
            case {"type": "transcript", "final": True, "text": text}:
                print(f"\n> {text}")
            case {"type": "waterfall", "waterfall_ms": stages}:
                response_pending = False
                print("  " + " · ".join(f"{k} {v:.0f} ms" for k, v in stages.items() if v is not None))
            case {"choices": {"finish_reason": ""}}:
                recording_sent = True
                deadline.reschedule(asyncio.get_running_loop().time() + TIMEOUT_S)
            case {"error": str(text)}:
                raise EchoSightError(text)
            case {"choices": list()} | {"error": dict()}:
                _print_record(record, player)
        if recording_sent and not response_pending:
            return


if __name__ == "__main__":
    main()
