from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.audio.formats import decode_audio
from echosight.conversation import AudioPart, ImagePart, Item
from echosight.errors import InputError
from echosight.events import (
    AddItem,
    Audio,
    Image,
    ItemDone,
    ResponseEnded,
    ResponseStarted,
    SpeechDelta,
    Text,
    Waterfall,
)
from echosight.media import AudioChunk, ImageFrame, Word
from echosight.options import GenerateOptions
from echosight.server import recording as recording_module
from echosight.server.recording import Recorder, SessionRecording, folder_name, to_jsonable

LOUD = b"\x10\x20" * 320
FRAME = ImageFrame(b"\xff\xd8 a picture", "image/jpeg", 4, 3)


def begin(recorder: Recorder, session_id: str = "me") -> SessionRecording:
    recording = recorder.open(session_id)
    assert recording is not None
    return recording


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_nothing_is_written_without_recording(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "32550")
    assert recorder.open("me") is None
    await recorder.close()
    assert names(tmp_path) == []


async def test_a_recording_holds_audio_images_and_events(tmp_path: Path) -> None:
    recording = begin(Recorder(tmp_path, record=True))
    recording.write(Audio(AudioChunk(LOUD)))
    recording.write(Image(FRAME))
    recording.write(Text("grüß"))
    recording.write(SpeechDelta("t", "i", AudioChunk(LOUD, 24_000), (Word(0, 2),)))
    recording.write(Audio(AudioChunk(LOUD)))
    recording.write(ItemDone(Item("user", (AudioPart(LOUD),), id="i"), None))
    await recording.close()

    assert decode_audio((recording.folder / "in.wav").read_bytes()) == AudioChunk(LOUD * 2, 16_000)
    assert decode_audio((recording.folder / "out.wav").read_bytes()) == AudioChunk(LOUD, 24_000)
    assert (recording.folder / "image-0001.jpeg").read_bytes() == FRAME.data
    assert recording.folder.stat().st_mode & 0o077 == 0
    events = lines(recording.folder / "events.jsonl")
    assert [e["event"] for e in events] == ["Audio", "Image", "Text", "SpeechDelta", "Audio", "ItemDone"]
    assert events[0]["chunk"] == {"pcm": {"bytes": 640}, "rate": 16_000}
    assert events[1]["file"] == "image-0001.jpeg"
    assert events[2]["text"] == "grüß"
    assert events[3]["words"] == [{"start_ms": 0, "text_end": 2}]
    assert events[5]["item"]["parts"][0]["pcm"] == {"bytes": 640}


async def test_a_turn_in_one_request_is_recorded_with_its_audio_and_images(tmp_path: Path) -> None:
    recording = begin(Recorder(tmp_path, record=True))
    recording.write(Image(FRAME))
    recording.write(AddItem(Item("user", (AudioPart(LOUD), ImagePart(FRAME), ImagePart(FRAME)))))
    await recording.close()
    assert decode_audio((recording.folder / "in.wav").read_bytes()) == AudioChunk(LOUD, 16_000)
    images = ["image-0002.jpeg", "image-0003.jpeg"]
    assert [(recording.folder / name).read_bytes() for name in images] == [FRAME.data] * 2
    assert lines(recording.folder / "events.jsonl")[1]["files"] == images


async def test_speech_out_of_band_is_not_mixed_into_that_of_the_conversation(tmp_path: Path) -> None:
    recording = begin(Recorder(tmp_path, record=True))
    recording.write(ResponseStarted("a", GenerateOptions(), conversation=False))
    recording.write(ResponseStarted("t", GenerateOptions()))
    for turn in ("t", "a", "t"):
        recording.write(SpeechDelta(turn, f"item of {turn}", AudioChunk(LOUD, 24_000)))
    recording.write(ResponseEnded("a", "completed"))
    await recording.close()
    assert decode_audio((recording.folder / "out.wav").read_bytes()) == AudioChunk(LOUD * 2, 24_000)
    assert len(lines(recording.folder / "events.jsonl")) == 6


async def test_a_track_keeps_the_rate_of_its_first_chunk(tmp_path: Path) -> None:
    recording = begin(Recorder(tmp_path, record=True))
    recording.write(Audio(AudioChunk(bytes(32_000), 16_000)))
    recording.write(Audio(AudioChunk(bytes(96_000), 48_000)))
    await recording.close()
    whole = decode_audio((recording.folder / "in.wav").read_bytes())
    assert whole.rate == 16_000
    assert whole.seconds == pytest.approx(2, abs=0.002)


async def test_a_waterfall_is_written_as_it_is_at_that_moment(tmp_path: Path) -> None:
    recording = begin(Recorder(tmp_path, record=True))
    waterfall = Waterfall(endpoint=1.5)
    recording.write(ResponseEnded("t", "completed", waterfall=waterfall))
    waterfall.endpoint = 99
    await recording.close()
    assert lines(recording.folder / "events.jsonl")[0]["waterfall"]["endpoint"] == 1.5


async def test_closing_the_recorder_closes_every_recording(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, record=True)
    for name in "abc":
        begin(recorder, name).write(Text(name))
    await recorder.close()
    texts = [lines(tmp_path / name / "events.jsonl")[0]["text"] for name in names(tmp_path)]
    assert texts == ["a", "b", "c"]


@given(st.text(max_size=80))
def test_a_session_id_is_never_a_path(session_id: str) -> None:
    name = folder_name(session_id)
    assert (Path("x") / name).parent == Path("x")
    assert name not in {".", ".."}
    assert len(name) < 80
    assert name.isascii()


async def test_a_session_id_that_looks_like_a_path_stays_inside(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a" / "b", record=True)
    for session_id in ("../../evil", "/etc/passwd", "", "..", "same", "same"):
        begin(recorder, session_id).write(Text("x"))
    await recorder.close()
    assert names(tmp_path) == ["a"]
    assert len(names(tmp_path / "a" / "b")) == 6


async def test_recordings_that_are_too_old_or_too_many_are_deleted(tmp_path: Path) -> None:
    def earlier(name: str, age_s: float, size: int) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "in.wav").write_bytes(bytes(size))
        os.utime(folder / "in.wav", (time.time() - age_s,) * 2)
        return folder

    ancient, old, recent = earlier("ancient", 1000, 1), earlier("old", 50, 6000), earlier("recent", 10, 6000)
    (tmp_path / "feedback.jsonl").write_text("{}\n")
    await Recorder(tmp_path, max_bytes=10_000, max_age_s=500).prune()
    assert [folder.exists() for folder in (ancient, old, recent)] == [False, False, True]
    assert (tmp_path / "feedback.jsonl").exists()


async def test_a_recording_in_progress_is_not_deleted_but_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path, record=True, max_bytes=5_000, max_age_s=0.0001)
    recording = begin(recorder)
    for _ in range(20):
        recording.write(Audio(AudioChunk(LOUD)))
    await recorder.prune()
    assert recording.dropped > 0
    with caplog.at_level(logging.WARNING):
        await recording.close()
    assert f"lacks {recording.dropped} events" in caplog.text


async def test_with_a_slow_disk_events_are_dropped_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, prune = asyncio.Event(), Recorder.prune

    async def stuck(self: Recorder) -> None:
        await gate.wait()
        await prune(self)

    monkeypatch.setattr(Recorder, "prune", stuck)
    monkeypatch.setattr(recording_module, "_MAX_PENDING_BYTES", 2_000)
    recording = begin(Recorder(tmp_path, record=True))
    for _ in range(10):
        recording.write(Audio(AudioChunk(LOUD)))
    assert recording.dropped > 0
    gate.set()
    await recording.close()
    kept = decode_audio((recording.folder / "in.wav").read_bytes()).samples // 320
    assert kept == 10 - recording.dropped > 0
    assert caplog.text.count("is incomplete") == 1


async def test_a_broken_disk_does_not_stop_the_session(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    recording = begin(Recorder(tmp_path / "file", record=True))
    recording.write(Text("x"))
    await recording.close()
    recording.write(Text("y"))
    assert "stopped" in caplog.text
    assert recording.dropped == 1


async def test_each_feedback_is_one_line(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "32550")
    records: list[Mapping[str, Any]] = [{"response_id": f"../{n}", "comment": "a\nb"} for n in range(20)]
    await asyncio.gather(*map(recorder.feedback, records))
    assert lines(tmp_path / "32550" / "feedback.jsonl") == records
    assert names(tmp_path) == ["32550"]


async def test_invalid_feedback_is_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    for record, status in (({"x": object()}, 400), ({"x": "y" * 70_000}, 413)):
        with pytest.raises(InputError) as refused:
            await recorder.feedback(record)
        assert refused.value.status == status
    assert names(tmp_path) == []


def test_events_are_written_without_their_bytes() -> None:
    assert to_jsonable({1: (b"abc", [FRAME])}) == {
        "1": [{"bytes": 3}, [{"data": {"bytes": 12}, "media_type": "image/jpeg", "width": 4, "height": 3}]]
    }
