"""A program with Piper's command line, and an object with the methods of pyttsx3's engine."""

from __future__ import annotations

import stat
import sys
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROGRAM = """#!{python}
import pathlib
import sys
pathlib.Path(__file__).with_name("arguments").write_text(" ".join(sys.argv[1:]))
text = sys.stdin.readline()
if "break" in text:
    sys.exit(3)
out = sys.stdout.buffer
try:
    while True:
        out.write(bytes([1, 0]) * 1000)
        out.flush()
        if "forever" not in text:
            break
except BrokenPipeError:
    pass
"""


def write_piper_program(folder: Path) -> tuple[Path, Path]:
    """Paths of the program and of the voice that it takes.

    A sentence is a quarter of a second, a sentence with "forever" has no end, one with "break" is an error. The program
    writes its arguments into the file `arguments`.
    """
    model = folder / "voice.onnx"
    model.touch()
    (folder / "voice.onnx.json").write_text('{"audio": {"sample_rate": 8000}, "speaker_id_map": {"a": 0, "b": 1}}')
    program = folder / "piper"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program, model


class System:
    """pyttsx3's engine as far as it is used: it writes a file when it is run."""

    def __init__(self) -> None:
        self.properties: dict[str, Any] = {
            "voice": "zoe",
            "voices": [
                SimpleNamespace(id="zoe", languages=["en_US"]),
                SimpleNamespace(id="max", languages=[b"\x05de"]),
            ],
        }
        self.queue: list[tuple[str, str]] = []
        self.files: list[str] = []

    def getProperty(self, name: str) -> Any:
        return self.properties[name]

    def setProperty(self, name: str, value: Any) -> None:
        self.properties[name] = value

    def save_to_file(self, text: str, filename: str) -> None:
        self.queue.append((text, filename))

    def runAndWait(self) -> None:
        for text, filename in self.queue:
            self.files.append(filename)
            if text == "break":
                continue
            with wave.open(filename, "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(22_050)
                file.writeframes(bytes(2000 * len(text)))
        self.queue.clear()
