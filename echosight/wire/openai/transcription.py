"""A transcript in the forms that OpenAI's clients ask for: JSON, plain text, subtitles, events."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Response
from fastapi.responses import JSONResponse, PlainTextResponse

from echosight.errors import InputError
from echosight.media import Transcript

Json = dict[str, Any]

LONGEST_SEGMENT_S, LONGEST_PAUSE_S = 7.0, 1.0
"""A subtitle stays readable, and does not hang over a silence."""


def written(transcript: Transcript, seconds: float, form: str) -> Response:
    """A recording of that length in the form that was asked for. Raises `InputError` for forms that are unknown."""
    text = transcript.text
    usage = {"type": "duration", "seconds": round(seconds)}
    match form:
        case "json":
            return JSONResponse({"text": text, "usage": usage})
        case "text":
            return PlainTextResponse(f"{text}\n")
        case "verbose_json":
            told = {"task": "transcribe", "language": transcript.language or "", "duration": seconds, "usage": usage}
            parts = {"words": words(transcript, seconds), "segments": segments(transcript, seconds)}
            return JSONResponse({**told, "text": text, **parts})
        case "srt":
            cues = enumerate(segments(transcript, seconds), 1)
            return PlainTextResponse("\n".join(f"{number}\n{_cue(part, ',')}" for number, part in cues))
        case "vtt":
            cues_of = (_cue(part, ".") for part in segments(transcript, seconds))
            return PlainTextResponse("\n".join(["WEBVTT\n", *cues_of]), media_type="text/vtt")
        case _:
            known = "'json', 'text', 'srt', 'verbose_json' or 'vtt'"
            raise InputError(f"response_format must be {known}", param="response_format")


def events(transcript: Transcript, seconds: float) -> bytes:
    """As server-sent events."""
    usage = {"type": "duration", "seconds": round(seconds)}
    told = (
        {"type": "transcript.text.delta", "delta": transcript.text},
        {"type": "transcript.text.done", "text": transcript.text, "usage": usage},
    )
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in told) + b"data: [DONE]\n\n"


def words(transcript: Transcript, seconds: float) -> list[Json]:
    """Each word with its time; it ends where the next one begins."""
    starts = [word.start_ms / 1000 for word in transcript.words]
    ends = [word.text_end for word in transcript.words]
    texts = [transcript.text[at:end].strip() for at, end in zip([0, *ends], ends, strict=False)]
    until = [*starts[1:], seconds]
    return [{"word": w, "start": s, "end": e} for w, s, e in zip(texts, starts, until, strict=False)]


def segments(transcript: Transcript, seconds: float) -> list[Json]:
    """The words in groups that end with a sentence, before a pause, or when they get long; one of all without times."""
    groups: list[list[Json]] = []
    for word in words(transcript, seconds):
        last = groups[-1] if groups else None
        if (
            last is None
            or last[-1]["word"].endswith((".", "?", "!"))
            or word["start"] - last[-1]["start"] > LONGEST_PAUSE_S
            or word["start"] - last[0]["start"] > LONGEST_SEGMENT_S
        ):
            groups.append([word])
        else:
            last.append(word)
    told = [_segment(n, g[0]["start"], g[-1]["end"], " ".join(w["word"] for w in g)) for n, g in enumerate(groups)]
    return told or ([_segment(0, 0.0, seconds, transcript.text)] if transcript.text else [])


def _segment(number: int, start: float, end: float, text: str) -> Json:
    return {"id": number, "seek": 0, "start": start, "end": end, "text": text, "tokens": [], "temperature": 0.0}


def _cue(segment: Json, point: str) -> str:
    return f"{_time(segment['start'], point)} --> {_time(segment['end'], point)}\n{segment['text']}\n"


def _time(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"
