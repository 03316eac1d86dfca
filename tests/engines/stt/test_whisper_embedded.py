"""Whisper tiny.en with its real weights, as the built-in engine uses it, and its short window."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.audio.formats import decode_audio
from echosight.audio.pcm import pcm_to_float
from echosight.engines.stt import whisper_embedded
from echosight.engines.stt.whisper import WhisperSTT, make_stt
from echosight.engines.stt.whisper_decoder import Decoder
from echosight.engines.stt.whisper_embedded import check_embedded, embedded_folder
from echosight.engines.stt.whisper_model import load_model
from echosight.engines.stt.whisper_window import is_loop, repeats_itself
from echosight.errors import SetupError
from echosight.settings import Settings
from tests.conftest import Flite

HELLO = Path(__file__).parents[3] / "docs" / "hello.wav"
SENTENCE = "please open the window before you leave the house"


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(load_model("tiny.en", "cpu"), short_window=True)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def text_of(decoder: Decoder, pcm: bytes, *, final: bool = True) -> str:
    segments, language = decoder.decode(pcm, None, "", final, lambda: True)
    assert language in ("en", None)
    return "".join(segment.text for segment in segments)


async def test_the_embedded_weights_recognise_a_sentence_word_for_word(flite: Flite) -> None:
    stt = make_stt("tiny.en", Settings())
    assert isinstance(stt, WhisperSTT)
    await stt.start()
    stream = stt.open("en")
    pcm = flite(SENTENCE).pcm
    for start in range(0, len(pcm), 6400):
        await stream.push(pcm[start : start + 6400])
    transcript = await stream.finalize()
    await stream.close()
    await stt.close()
    assert words(transcript.text) == words(SENTENCE)
    starts = [word.start_ms for word in transcript.words]
    assert len(starts) == len(SENTENCE.split())
    assert starts == sorted(starts)


def test_the_recording_of_the_readme_is_understood(decoder: Decoder) -> None:
    assert words(text_of(decoder, decode_audio(HELLO.read_bytes()).pcm)) == words(TEXT_OF_HELLO)


TEXT_OF_HELLO = "open the window please"


def test_a_short_window_gives_the_words_of_the_full_one(decoder: Decoder, flite: Flite) -> None:
    """Upstream's own transcription always encodes 30 seconds."""
    for text in (SENTENCE, "yes", "the train to paris leaves at nine from platform four this morning"):
        samples = pcm_to_float(flite(text).pcm)
        found, _ = decoder._model.transcribe(samples, language="en", beam_size=5, temperature=0.0)
        full = "".join(segment.text for segment in found)
        assert words(text_of(decoder, flite(text).pcm)) == words(full)


def test_silence_and_noise_have_no_words(decoder: Decoder) -> None:
    assert text_of(decoder, bytes(64_000)) == ""
    assert text_of(decoder, bytes([1, 0, 255, 255] * 16_000)) == ""


def test_a_decode_that_loops_is_repeated_with_the_full_window(
    decoder: Decoder, flite: Flite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echosight.engines.stt.whisper_window.is_loop", lambda tokens, limit: True)
    assert words(text_of(decoder, flite(SENTENCE).pcm)) == words(SENTENCE)


@given(st.lists(st.integers(0, 50), unique=True, max_size=40))
def test_tokens_without_a_repetition_are_no_loop(tokens: list[int]) -> None:
    assert not is_loop(tokens, 41)
    assert is_loop(tokens, len(tokens))


@given(st.lists(st.integers(0, 9), max_size=8), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_three_equal_runs_at_the_end_are_a_loop(start: list[int], run: list[int]) -> None:
    assert is_loop([*start, *run * 3], 1000)


@given(
    st.lists(st.integers(0, 9), max_size=8),
    st.lists(st.integers(0, 9), min_size=3, max_size=6),
    st.lists(st.integers(0, 9), max_size=8),
)
def test_a_run_of_three_or_more_twice_in_a_row_is_a_loop(start: list[int], run: list[int], rest: list[int]) -> None:
    assert is_loop([*start, *run, *run, *rest], 1000)


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("Close the door now. Close the door now", True),
        ("I have the 7 of clubs. I have the", True),
        ("Close the door now.", False),
        ("Good morning.", False),
        ("No, no, no.", False),
        ("It is what it is.", False),
        ("", False),
    ],
)
def test_a_repeated_end_is_found_in_the_text(text: str, repeats: bool) -> None:
    assert repeats_itself(text) == repeats


def test_a_damaged_file_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped bit: CTranslate2 itself would load it."""
    folder = embedded_folder("tiny.en")
    assert folder is not None
    for name in whisper_embedded.FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert check_embedded(tmp_path) == tmp_path
    data = bytearray((folder / "model.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(SetupError, match="damaged"):
        check_embedded(tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(SetupError, match="missing"):
        check_embedded(tmp_path)


def test_other_sizes_are_not_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded_folder("base") is None
    monkeypatch.setattr(whisper_embedded, "find_spec", lambda name: None)
    assert embedded_folder("tiny.en") is None
