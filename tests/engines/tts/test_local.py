"""Voices in this process: the real programs on tiny checkpoints, where their packages are installed."""

from __future__ import annotations

import stat
import sys
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from echosight.engines import TTS, SpeechChunk
from echosight.engines.tts import kokoro, piper, pyttsx3, vits
from echosight.engines.tts.local import LocalTTS, pieces
from echosight.errors import EngineFailure, SetupError
from echosight.media import Word
from echosight.options import GenerateOptions
from echosight.settings import Settings

TEXT = "Hello world, how are you?"
PLAIN = GenerateOptions()


@asynccontextmanager
async def started(voice: TTS) -> AsyncIterator[TTS]:
    await voice.start()
    try:
        yield voice
    finally:
        await voice.close()


async def spoken(voice: TTS, text: str = TEXT, options: GenerateOptions = PLAIN) -> list[SpeechChunk]:
    return [piece async for piece in voice.synthesize(text, options)]


def samples(said: list[SpeechChunk]) -> int:
    return sum(len(piece.pcm) // 2 for piece in said)


def check(said: list[SpeechChunk], rate: int, text: str = TEXT) -> None:
    """Pieces of 60 ms, and every word of the text in the piece that it begins in."""
    assert {len(piece.pcm) for piece in said[:-1]} <= {2 * (rate * 60 // 1000)}
    words = [word for piece in said for word in piece.words]
    assert [text[: word.text_end].split()[-1] for word in words] == text.split()
    assert [word.start_ms for word in words] == sorted(word.start_ms for word in words)
    for n, piece in enumerate(said[:-1]):
        assert all(60 * n <= word.start_ms < 60 * (n + 1) for word in piece.words)


def test_words_that_begin_too_late_come_with_the_last_piece() -> None:
    said = list(pieces("a b", bytes(4000), 16_000, (Word(0, 1), Word(5000, 3))))
    assert [piece.words for piece in said] == [(Word(0, 1),), (), (Word(5000, 3),)]


class Stepwise:
    """A speaker that counts its steps."""

    rate = 16_000
    voices: tuple[str, ...] = ("one",)

    def __init__(self) -> None:
        self.steps = 0
        self.closed = False

    def synthesize(self, text: str, options: GenerateOptions) -> Iterator[SpeechChunk]:
        try:
            for _ in range(100):
                self.steps += 1
                if text == "break":
                    raise RuntimeError("no memory")
                yield SpeechChunk(bytes(2))
        finally:
            self.closed = True


async def test_a_voice_that_nobody_hears_stops() -> None:
    speaker = Stepwise()
    made: Any = LocalTTS("steps", lambda: speaker, 8_000)  # type: ignore[arg-type, return-value]
    async with started(made) as voice:
        assert (voice.rate, voice.voices) == (16_000, ("one",))
        async with aclosing(voice.synthesize("go on", PLAIN)) as said:
            await anext(said)
        assert (speaker.steps, speaker.closed) == (1, True)
        with pytest.raises(EngineFailure, match="no memory"):
            await spoken(voice, "break")


@pytest.fixture(scope="module")
def vits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    from tests.engines.tiny_local import write_vits

    return write_vits(tmp_path_factory.mktemp("vits"))


async def test_vits_speaks(vits_folder: Path) -> None:
    async with started(vits.voice(str(vits_folder), Settings())) as voice:
        assert voice.rate == 16_000
        said = await spoken(voice)
        check(said, voice.rate)
        assert samples(said) > 8_000
        assert any(any(piece.pcm) for piece in said)
        fast = await spoken(voice, options=GenerateOptions(speed=2.0))
        assert samples(fast) < samples(said)
        assert samples(await spoken(voice, "…")) == 0


async def test_vits_says_what_is_missing(vits_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no folder"):
        await vits.voice(str(tmp_path / "nowhere"), Settings()).start()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SetupError, match="of type 'llama'"):
        await vits.voice(str(tmp_path), Settings()).start()


@pytest.fixture(params=[True, False], ids=["timed", "untimed"])
def kokoro_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pytest.importorskip("kokoro_onnx")
    pytest.importorskip("onnx")
    from tests.engines.tts.tiny_onnx import write_kokoro

    return write_kokoro(tmp_path, timed=request.param)


async def test_kokoro_speaks(kokoro_folder: Path) -> None:
    async with started(kokoro.voice(str(kokoro_folder), Settings(kokoro_voice="bf_emma"))) as voice:
        assert (voice.rate, voice.voices) == (24_000, ("bf_emma", "af_heart", "if_sara"))
        said = await spoken(voice)
        check(said, voice.rate)
        assert any(any(piece.pcm) for piece in said)


async def test_kokoro_speaks_the_language(kokoro_folder: Path) -> None:
    async with started(kokoro.voice(str(kokoro_folder), Settings())) as voice:
        speaker: Any = voice._speaker  # type: ignore[attr-defined]
        assert speaker._voice(GenerateOptions(language="it-IT")) == "if_sara"
        assert speaker._voice(GenerateOptions(language="en-GB")) == "af_heart"
        assert speaker._voice(GenerateOptions(language="ja")) == "af_heart"
        assert speaker._voice(GenerateOptions(language="it", voice="bf_emma")) == "bf_emma"


def test_words_are_timed_by_their_phonemes() -> None:
    phonemes = [("h", 0.1), ("i", 0.2), (",", 0.3), (" ", 0.3), ("ˈ", 0.35), ("j", 0.4), ("u", 0.5), ("!", 0.6)]
    assert kokoro.word_times("Hi, you!", phonemes) == (Word(100, 3), Word(350, 8))
    # A number is more words spoken than written.
    assert kokoro.word_times("21!", [("t", 0.0), (" ", 0.1), ("w", 0.2)]) == ()


def test_kokoro_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match=r"voices-v1\.0\.bin"):
        kokoro.find_files([str(tmp_path)])
    monkeypatch.setattr("echosight.engines.runtime.extras.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="uv run --extra kokoro"):
        kokoro.voice(None, Settings())


@pytest.fixture
def piper_file(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    from tests.engines.tts.tiny_onnx import write_piper

    return write_piper(tmp_path)


async def test_piper_speaks(piper_file: Path) -> None:
    pytest.importorskip("piper")
    async with started(piper.voice(None, Settings(piper_model_path=str(piper_file)))) as voice:
        assert (voice.rate, voice.voices) == (16_000, ("ann", "bob"))
        said = await spoken(voice, options=GenerateOptions(voice="bob"))
        check(said, voice.rate)
        assert any(any(piece.pcm) for piece in said)


async def test_piper_is_refused_where_it_is_broken(piper_file: Path) -> None:
    pytest.importorskip("piper")
    piper_file.write_bytes(b"nothing")
    with pytest.raises(SetupError, match="could not be loaded by Piper"):
        await piper.voice(str(piper_file), Settings()).start()


def test_piper_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "voice.onnx"
    with pytest.raises(SetupError, match=r"piper\.download_voices"):
        piper.read_config(model)
    model.touch()
    (tmp_path / "voice.onnx.json").write_text("{}")
    with pytest.raises(SetupError, match="does not describe"):
        piper.read_config(model)
    monkeypatch.setattr("echosight.engines.runtime.extras.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="uv run --extra piper"):
        piper.voice(str(model), Settings())


PROGRAM = """#!{python}
import sys
given = sys.argv[1:]
assert given[:3] == ["--model", "{model}", "--output_raw"], given
wish = dict(zip(given[3::2], given[4::2]))
assert wish == {{"--length_scale": "0.500", "--speaker": "1"}}, wish
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


@pytest.fixture
def piper_program(tmp_path: Path) -> piper.PiperProgram:
    model = tmp_path / "voice.onnx"
    model.touch()
    (tmp_path / "voice.onnx.json").write_text('{"audio": {"sample_rate": 8000}, "speaker_id_map": {"a": 0, "b": 1}}')
    program = tmp_path / "piper"
    program.write_text(PROGRAM.format(python=sys.executable, model=model))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    made = piper.voice(str(model), Settings(piper_exe_path=str(program)))
    assert isinstance(made, piper.PiperProgram)
    return made


WISH = GenerateOptions(voice="b", speed=2.0)


async def test_the_program_of_piper_speaks(piper_program: piper.PiperProgram) -> None:
    said = await spoken(piper_program, "two\nlines", WISH)
    assert [len(piece.pcm) for piece in said] == [960, 960, 80]


async def test_the_program_of_piper_stops_with_its_sentence(piper_program: piper.PiperProgram) -> None:
    async with aclosing(piper_program.synthesize("forever", WISH)) as said:
        await anext(said)
    with pytest.raises(EngineFailure, match="status 3"):
        await spoken(piper_program, "break", WISH)


async def test_a_program_that_is_none_is_refused(piper_program: piper.PiperProgram, tmp_path: Path) -> None:
    (tmp_path / "piper").unlink()
    with pytest.raises(EngineFailure, match="cannot be started"):
        await spoken(piper_program, "hello", WISH)
    with pytest.raises(SetupError, match="PIPER_EXE_PATH"):
        piper.voice(str(tmp_path / "voice.onnx"), Settings(piper_exe_path=str(tmp_path / "piper")))


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


async def test_the_voices_of_the_system_speak() -> None:
    system = System()
    async with started(LocalTTS("pyttsx3", lambda: pyttsx3.SystemVoiceModel(system), 8_000)) as voice:
        assert (voice.rate, voice.voices) == (22_050, ("zoe", "max"))
        check(await spoken(voice, options=GenerateOptions(language="de-AT", speed=1.5)), voice.rate)
        assert (system.properties["voice"], system.properties["rate"]) == ("max", 270)
        await spoken(voice)
        assert system.properties["voice"] == "zoe"
        with pytest.raises(EngineFailure, match="no WAV file"):
            await spoken(voice, "break")
    assert not any(Path(file).exists() for file in system.files)


async def test_a_system_without_voices_is_told_of() -> None:
    pytest.importorskip("pyttsx3")
    with pytest.raises(SetupError, match="espeak-ng"):
        await pyttsx3.voice("nonsense", Settings()).start()
