"""TTS models in this process: the real packages on tiny checkpoints, where they are installed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from echosight.engines import TTS, SpeechChunk
from echosight.engines.tts import kokoro, piper, pyttsx3, vits
from echosight.engines.tts.local import LocalTTS, split_into_chunks
from echosight.errors import EngineFailure, SetupError
from echosight.media import Word
from echosight.options import GenerateOptions
from echosight.settings import Settings
from tests.engines.tts.stand_ins import System, write_piper_program

TEXT = "Hello world, how are you?"
PLAIN = GenerateOptions()


@asynccontextmanager
async def started(tts: TTS) -> AsyncIterator[TTS]:
    await tts.start()
    try:
        yield tts
    finally:
        await tts.close()


async def synthesize(tts: TTS, text: str = TEXT, options: GenerateOptions = PLAIN) -> list[SpeechChunk]:
    return [chunk async for chunk in tts.synthesize(text, options)]


def samples(chunks: list[SpeechChunk]) -> int:
    return sum(len(chunk.pcm) // 2 for chunk in chunks)


def check(chunks: list[SpeechChunk], rate: int, text: str = TEXT) -> None:
    """Chunks of 60 ms, and every word of the text in the chunk in which it begins."""
    assert {len(chunk.pcm) for chunk in chunks[:-1]} <= {2 * (rate * 60 // 1000)}
    words = [word for chunk in chunks for word in chunk.words]
    assert [text[: word.text_end].split()[-1] for word in words] == text.split()
    assert [word.start_ms for word in words] == sorted(word.start_ms for word in words)
    for n, chunk in enumerate(chunks[:-1]):
        assert all(60 * n <= word.start_ms < 60 * (n + 1) for word in chunk.words)


def test_words_that_begin_too_late_come_at_the_end_of_the_last_chunk() -> None:
    chunks = list(split_into_chunks("a b", bytes(4000), 16_000, (Word(0, 1), Word(5000, 3))))
    assert [chunk.words for chunk in chunks] == [(Word(0, 1),), (), (Word(125, 3),)]


class Stepwise:
    """A `LocalModel` that counts its steps."""

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


async def test_closing_the_generator_stops_the_model() -> None:
    model = Stepwise()
    local: Any = LocalTTS("steps", lambda: model, 8_000)  # type: ignore[arg-type, return-value]
    async with started(local) as tts:
        assert (tts.rate, tts.voices) == (16_000, ("one",))
        async with aclosing(tts.synthesize("go on", PLAIN)) as chunks:
            await anext(chunks)
        assert (model.steps, model.closed) == (1, True)
        with pytest.raises(EngineFailure, match="no memory"):
            await synthesize(tts, "break")


@pytest.fixture(scope="module")
def vits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    from tests.engines.tiny_local import write_vits

    return write_vits(tmp_path_factory.mktemp("vits"))


async def test_vits_speaks(vits_folder: Path) -> None:
    async with started(vits.make_tts(str(vits_folder), Settings())) as tts:
        assert tts.rate == 16_000
        chunks = await synthesize(tts)
        check(chunks, tts.rate)
        assert samples(chunks) > 8_000
        assert any(any(chunk.pcm) for chunk in chunks)
        fast = await synthesize(tts, options=GenerateOptions(speed=2.0))
        assert samples(fast) < samples(chunks)
        assert samples(await synthesize(tts, "…")) == 0


async def test_a_missing_vits_model_is_a_setup_error(vits_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no folder"):
        await vits.make_tts(str(tmp_path / "nowhere"), Settings()).start()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SetupError, match="of type 'llama'"):
        await vits.make_tts(str(tmp_path), Settings()).start()


@pytest.fixture(params=[True, False], ids=["timed", "untimed"])
def kokoro_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pytest.importorskip("kokoro_onnx")
    pytest.importorskip("onnx")
    from tests.engines.tts.tiny_onnx import write_kokoro

    return write_kokoro(tmp_path, timed=request.param)


async def test_kokoro_speaks(kokoro_folder: Path) -> None:
    async with started(kokoro.make_tts(str(kokoro_folder), Settings(kokoro_voice="bf_emma"))) as tts:
        assert (tts.rate, tts.voices) == (24_000, ("bf_emma", "af_heart", "if_sara"))
        chunks = await synthesize(tts)
        check(chunks, tts.rate)
        assert any(any(chunk.pcm) for chunk in chunks)


async def test_kokoro_speaks_the_language(kokoro_folder: Path) -> None:
    async with started(kokoro.make_tts(str(kokoro_folder), Settings())) as tts:
        model: Any = tts._model  # type: ignore[attr-defined]
        assert model.choose_voice(GenerateOptions(language="it-IT")) == "if_sara"
        assert model.choose_voice(GenerateOptions(language="en-GB")) == "af_heart"
        assert model.choose_voice(GenerateOptions(language="ja")) == "af_heart"
        assert model.choose_voice(GenerateOptions(language="it", voice="bf_emma")) == "bf_emma"


def test_words_are_timed_by_their_phonemes() -> None:
    phonemes = [("h", 0.1), ("i", 0.2), (",", 0.3), (" ", 0.3), ("ˈ", 0.35), ("j", 0.4), ("u", 0.5), ("!", 0.6)]
    assert kokoro.word_times("Hi, you!", phonemes) == (Word(100, 3), Word(350, 8))
    # A number is more words spoken than written.
    assert kokoro.word_times("21!", [("t", 0.0), (" ", 0.1), ("w", 0.2)]) == ()


def test_missing_files_of_kokoro_are_a_setup_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match=r"voices-v1\.0\.bin"):
        kokoro.find_files([str(tmp_path)])
    monkeypatch.setattr("echosight.engines.runtime.extras.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="uv run --extra kokoro"):
        kokoro.make_tts(None, Settings())


@pytest.fixture
def piper_file(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    from tests.engines.tts.tiny_onnx import write_piper

    return write_piper(tmp_path)


async def test_piper_speaks(piper_file: Path) -> None:
    pytest.importorskip("piper")
    async with started(piper.make_tts(None, Settings(piper_model_path=str(piper_file)))) as tts:
        assert (tts.rate, tts.voices) == (16_000, ("ann", "bob"))
        chunks = await synthesize(tts, options=GenerateOptions(voice="bob"))
        check(chunks, tts.rate)
        assert any(any(chunk.pcm) for chunk in chunks)


async def test_a_broken_piper_voice_is_a_setup_error(piper_file: Path) -> None:
    pytest.importorskip("piper")
    piper_file.write_bytes(b"nothing")
    with pytest.raises(SetupError, match="could not be loaded by Piper"):
        await piper.make_tts(str(piper_file), Settings()).start()


def test_missing_files_of_piper_are_a_setup_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "voice.onnx"
    with pytest.raises(SetupError, match=r"piper\.download_voices"):
        piper.read_config(model)
    model.touch()
    (tmp_path / "voice.onnx.json").write_text("{}")
    with pytest.raises(SetupError, match="does not describe"):
        piper.read_config(model)
    monkeypatch.setattr("echosight.engines.runtime.extras.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="uv run --extra piper"):
        piper.make_tts(str(model), Settings())


@pytest.fixture
def piper_program(tmp_path: Path) -> piper.PiperProgram:
    program, model = write_piper_program(tmp_path)
    tts = piper.make_tts(str(model), Settings(piper_exe_path=str(program)))
    assert isinstance(tts, piper.PiperProgram)
    return tts


OPTIONS = GenerateOptions(voice="b", speed=2.0)


async def test_the_program_of_piper_speaks(piper_program: piper.PiperProgram, tmp_path: Path) -> None:
    chunks = await synthesize(piper_program, "two\nlines", OPTIONS)
    assert [len(chunk.pcm) for chunk in chunks] == [960, 960, 80]
    arguments = f"--model {tmp_path / 'voice.onnx'} --output_raw --length_scale 0.500 --speaker 1"
    assert (tmp_path / "arguments").read_text() == arguments


async def test_the_program_of_piper_is_killed_when_the_generator_is_closed(piper_program: piper.PiperProgram) -> None:
    async with aclosing(piper_program.synthesize("forever", OPTIONS)) as chunks:
        await anext(chunks)
    with pytest.raises(EngineFailure, match="status 3"):
        await synthesize(piper_program, "break", OPTIONS)


async def test_a_missing_program_of_piper_is_an_error(piper_program: piper.PiperProgram, tmp_path: Path) -> None:
    (tmp_path / "piper").unlink()
    with pytest.raises(EngineFailure, match="cannot be started"):
        await synthesize(piper_program, "hello", OPTIONS)
    with pytest.raises(SetupError, match="PIPER_EXE_PATH"):
        piper.make_tts(str(tmp_path / "voice.onnx"), Settings(piper_exe_path=str(tmp_path / "piper")))


async def test_the_voices_of_the_system_speak() -> None:
    system = System()
    async with started(LocalTTS("pyttsx3", lambda: pyttsx3.SystemVoiceModel(system), 8_000)) as tts:
        assert (tts.rate, tts.voices) == (22_050, ("zoe", "max"))
        check(await synthesize(tts, options=GenerateOptions(language="de-AT", speed=1.5)), tts.rate)
        assert (system.properties["voice"], system.properties["rate"]) == ("max", 270)
        await synthesize(tts)
        assert system.properties["voice"] == "zoe"
        with pytest.raises(EngineFailure, match="no WAV file"):
            await synthesize(tts, "break")
    assert not any(Path(file).exists() for file in system.files)


async def test_a_system_without_voices_is_a_setup_error() -> None:
    pytest.importorskip("pyttsx3")
    with pytest.raises(SetupError, match="espeak-ng"):
        await pyttsx3.make_tts("nonsense", Settings()).start()
