"""How well and how cheaply recognisers understand: `uv run benchmarks/recognisers.py FOLDER --stt whisper:tiny.en`.

FOLDER holds a `manifest.json`: a list of objects with `file`, `transcript` and `language`. Files in other languages
than `--language` are left out. Each recording is pushed in chunks of 100 ms, as fast as they are taken.

  WER        word error rate: wrong, missing and added words over the words spoken, without case and punctuation
  cpu/s      CPU seconds of this process and its children for one second of audio
  final p50  wall time of `finalize`, in ms
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from echosight.audio.formats import decode_audio
from echosight.audio.resampling import resample
from echosight.engines import STT
from echosight.engines.cascade_parts import STTS
from echosight.media import INPUT_SAMPLE_RATE, AudioChunk
from echosight.settings import Settings

CHUNK_BYTES = 3200


def words(text: str) -> list[str]:
    return re.sub(r"[^\w' ]", "", text.lower().replace("-", " ")).split()


def edits(spoken: list[str], recognised: list[str]) -> int:
    """Levenshtein distance in words."""
    row = list(range(len(recognised) + 1))
    for index, word in enumerate(spoken, 1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(recognised, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (word != other))
    return row[-1]


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


async def recognise(stt: STT, audio: AudioChunk, language: str) -> tuple[str, float]:
    """(text, seconds that `finalize` took)."""
    stream = stt.open(language)
    try:
        for start in range(0, len(audio.pcm), CHUNK_BYTES):
            await stream.push(audio.pcm[start : start + CHUNK_BYTES])
        began = time.perf_counter()
        transcript = await stream.finalize()
        return transcript.text, time.perf_counter() - began
    finally:
        await stream.close()


async def measure(spec: str, recordings: list[tuple[AudioChunk, str]], language: str) -> None:
    before = cpu_s()
    stt = STTS.create(spec, Settings())
    await stt.start()
    loaded = cpu_s()
    errors = spoken = 0
    finals = []
    for audio, transcript in recordings:
        text, seconds = await recognise(stt, audio, language)
        finals.append(seconds)
        errors += edits(words(transcript), words(text))
        spoken += len(words(transcript))
    await stt.close()  # ends child processes, whose CPU time counts from then on
    used = cpu_s() - (loaded if loaded > before else before)
    audio_s = sum(audio.seconds for audio, _ in recordings)
    final_ms = statistics.median(finals) * 1000
    print(
        f"{stt.name:24} {errors / spoken:.3f} ({errors}/{spoken})  {used / audio_s:.3f}  {final_ms:.0f} ms", flush=True
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stt", nargs="+", default=["whisper:tiny.en", "sphinx"])
    parser.add_argument("--language", default="en")
    parser.add_argument("--skip", nargs="*", default=["stereo", "noise", "long"], help="values of `kind` to leave out")
    args = parser.parse_args()
    entries = json.loads((args.folder / "manifest.json").read_text())
    recordings = [
        (resample(decode_audio((args.folder / entry["file"]).read_bytes()), INPUT_SAMPLE_RATE), entry["transcript"])
        for entry in entries
        if entry.get("transcript") and entry.get("language") == args.language and entry.get("kind") not in args.skip
    ]
    print(f"{len(recordings)} recordings, {sum(audio.seconds for audio, _ in recordings):.0f} s")
    print(f"{'recogniser':24} WER            cpu/s  final p50")
    for spec in args.stt:
        await measure(spec, recordings, args.language)


if __name__ == "__main__":
    asyncio.run(main())
