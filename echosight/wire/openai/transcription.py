"""A transcript in the formats of OpenAI's transcription endpoint: JSON, plain text, subtitles, server-sent events."""

from __future__ import annotations

from typing import Any

from echosight.errors import InputError
from echosight.media import Transcript
from echosight.wire.fields import write_json

Json = dict[str, Any]

MAX_SEGMENT_S, MAX_PAUSE_S = 7.0, 1.0
"""A subtitle of this length is still readable; a longer pause ends it, so that it is not shown during silence."""


def format_transcript(transcript: Transcript, seconds: float, response_format: str) -> tuple[str, bytes]:
    """(media type, body) of a recording of that length. Raises `InputError` for unknown formats."""
    text = transcript.text
    usage = _usage(seconds)
    match response_format:
        case "json":
            return "application/json", write_json({"text": text, "usage": usage}).encode()
        case "text":
            return "text/plain", f"{text}\n".encode()
        case "verbose_json":
            common = {"task": "transcribe", "language": transcript.language or "", "duration": seconds, "usage": usage}
            parts = {"words": words(transcript, seconds), "segments": segments(transcript, seconds)}
            return "application/json", write_json({**common, "text": text, **parts}).encode()
        case "srt":
            cues = (_subtitle_cue(segment, ",") for segment in segments(transcript, seconds))
            return "text/plain", "\n".join(f"{number}\n{cue}" for number, cue in enumerate(cues, 1)).encode()
        case "vtt":
            cues = (_subtitle_cue(segment, ".") for segment in segments(transcript, seconds))
            return "text/vtt", "\n".join(["WEBVTT\n", *cues]).encode()
        case _:
            known = "'json', 'text', 'srt', 'verbose_json' or 'vtt'"
            raise InputError(f"response_format must be {known}", param="response_format")


def sse_events(transcript: Transcript, seconds: float) -> bytes:
    """The body of a streamed transcription: one delta, then the whole text."""
    events = (
        {"type": "transcript.text.delta", "delta": transcript.text},
        {"type": "transcript.text.done", "text": transcript.text, "usage": _usage(seconds)},
    )
    return "".join(f"data: {write_json(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"


def words(transcript: Transcript, seconds: float) -> list[Json]:
    """Each word with its times; it ends where the next one begins."""
    starts = [word.start_ms / 1000 for word in transcript.words]
    text_ends = [word.text_end for word in transcript.words]
    texts = [transcript.text[start:end].strip() for start, end in zip([0, *text_ends], text_ends, strict=False)]
    ends = [*starts[1:], seconds]
    return [{"word": w, "start": s, "end": e} for w, s, e in zip(texts, starts, ends, strict=False)]


def segments(transcript: Transcript, seconds: float) -> list[Json]:
    """Groups of words that end with a sentence, before a pause, or when they get long.

    One segment of the whole text where the words have no times, none where there is no text.
    """
    groups: list[list[Json]] = []
    for word in words(transcript, seconds):
        last = groups[-1] if groups else None
        if (
            last is None
            or last[-1]["word"].endswith((".", "?", "!"))
            or word["start"] - last[-1]["start"] > MAX_PAUSE_S
            or word["start"] - last[0]["start"] > MAX_SEGMENT_S
        ):
            groups.append([word])
        else:
            last.append(word)
    timed = [_segment(index, group[0]["start"], group[-1]["end"], _joined(group)) for index, group in enumerate(groups)]
    return timed or ([_segment(0, 0.0, seconds, transcript.text)] if transcript.text else [])


def _segment(index: int, start: float, end: float, text: str) -> Json:
    return {"id": index, "seek": 0, "start": start, "end": end, "text": text, "tokens": [], "temperature": 0.0}


def _joined(group: list[Json]) -> str:
    return " ".join(word["word"] for word in group)


def _subtitle_cue(segment: Json, decimal_mark: str) -> str:
    start, end = (_timestamp(segment[key], decimal_mark) for key in ("start", "end"))
    return f"{start} --> {end}\n{segment['text']}\n"


def _timestamp(seconds: float, decimal_mark: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{decimal_mark}{ms % 1000:03}"


def _usage(seconds: float) -> Json:
    return {"type": "duration", "seconds": round(seconds)}
