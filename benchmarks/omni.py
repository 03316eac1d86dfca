"""What an omni model costs with random weights: `uv run --extra local benchmarks/omni.py --size tiny --device cpu`.

Sizes 3b, 7b (Qwen2.5-Omni) and 30b-a3b (Qwen3-Omni) want a GPU: `--size 7b --device cuda`. Measured: what is left of
the prefill once the user has stopped speaking, beside a prefill of the same speech in one go; first text and first
speech; decoding beside the time that reading the weights takes; and answers at the same time against real time.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.omni_models import SIZES, build
from echosight.conversation import AudioPart, Item
from echosight.engines import SpeechChunk, TextChunk
from echosight.engines.omni.conversation_cache import Memory, View
from echosight.engines.omni.generation import Answer, Wish
from echosight.engines.omni.model import OmniModel
from echosight.engines.omni.model_runner import Stage
from echosight.engines.omni.state import Limits
from echosight.engines.runtime.sampling import SamplingParams
from echosight.media import INPUT_SAMPLE_RATE

SYSTEM = "You are a helpful assistant."
REPEATS = 5
TEXT_STEPS = 48
Clock = Callable[[], float]


def say(name: str, value: str) -> None:
    print(f"{name:<58} {value:>24}", flush=True)


def spoken(seconds: float, seed: int = 0) -> Item:
    noise = np.random.default_rng(seed).normal(0, 3000, int(seconds * INPUT_SAMPLE_RATE)).astype("<i2")
    part = AudioPart(noise.tobytes(), INPUT_SAMPLE_RATE, int(seconds * 1000))
    return Item("user", (part,), f"turn{seed}")


def begun(item: Item, samples: int) -> Item:
    """The turn after so many samples."""
    assert item.audio is not None and item.audio.pcm is not None
    part = AudioPart(item.audio.pcm[: 2 * samples], INPUT_SAMPLE_RATE, samples * 1000 // INPUT_SAMPLE_RATE)
    return Item("user", (part,), item.id)


def view(*items: Item, turn: Item | None = None, name: str = "talk") -> View:
    return View(name, items, SYSTEM, turn)


def prefill(model: OmniModel, clock: Clock, item: Item) -> None:
    """After the end of speech: what was not heard ahead, against all of it."""
    samples = item.audio.duration_ms * INPUT_SAMPLE_RATE // 1000 if item.audio else 0
    left: list[float] = []
    whole: list[float] = []
    tokens = 0
    for _ in range(REPEATS + 1):
        for kept, ahead in ((left, True), (whole, False)):
            memory = Memory(model, model.limits.context)
            if ahead:
                memory.follow(view(turn=begun(item, samples - INPUT_SAMPLE_RATE // 50)))
            start = clock()
            memory.prepare_reply(view(item), None)
            kept.append((clock() - start) * 1000)
            tokens = len(memory.context)
    after, at_once = statistics.median(left[1:]), statistics.median(whole[1:])
    say(f"prefill of {samples / INPUT_SAMPLE_RATE:.1f} s of speech in one go ({tokens} tokens)", f"{at_once:.1f} ms")
    say("prefill left after the end of speech", f"{after:.1f} ms ({after / at_once:.2f})")


def first_pieces(model: OmniModel, clock: Clock, item: Item, wish: Wish) -> None:
    """From the end of speech to the first text and the first speech, alone on the model.

    From here on only the beginning waits for the device: waiting in between would hold up the vocoder's stream.
    """
    text, speech = [], []
    for _ in range(REPEATS + 1):
        stage = Stage(model, 1, 256)
        stage.follow(view(turn=begun(item, item.audio.duration_ms * 16 - 320 if item.audio else 0)))
        start = clock()
        answer = stage.begin(view(item), wish)
        heard = written = 0.0
        while not heard:
            for piece in stage.advance([answer])[0]:
                written = written or (isinstance(piece, TextChunk) and time.perf_counter() - start) or 0.0
                heard = heard or (isinstance(piece, SpeechChunk) and time.perf_counter() - start) or 0.0
        stage.end("talk", [answer])
        text.append(written * 1000)
        speech.append(heard * 1000)
    say("first text after the end of speech", f"{statistics.median(text[1:]):.1f} ms")
    say("first speech after the end of speech", f"{statistics.median(speech[1:]):.1f} ms")


def bandwidth(device: str) -> float:
    """Bytes that the device reads in a second: of a copy, which reads as much as it writes."""
    size = (2**30 if device.startswith("cuda") else 2**27) // 4
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    best = float("inf")
    for _ in range(8):
        start = now(device)
        target.copy_(source)
        best = min(best, now(device) - start)
    return 2 * 4 * size / best


def read_bytes(model: OmniModel) -> int:
    """Weights that one step of the thinker reads for one answer: of a mixture of experts, the chosen ones."""
    config = model.thinker.config.text_config
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_experts", 1)
    layers = model.thinker.model.language_model.layers.named_parameters()
    read = sum(p.numel() * p.element_size() * (share if ".experts." in name else 1.0) for name, p in layers)
    head = model.thinker.lm_head.weight
    return int(read + head.numel() * head.element_size())


def decode(model: OmniModel, item: Item, device: str) -> None:
    """Text alone, against the time that the weights take to be read."""
    stage = Stage(model, 1, 256)
    answer = stage.begin(view(item), Wish(SamplingParams(), TEXT_STEPS))
    stage.advance([answer])
    times = []
    while not answer.done:
        start = time.perf_counter()
        stage.advance([answer])
        times.append((time.perf_counter() - start) * 1000)
    stage.end("talk", [answer])
    speed = bandwidth(device)
    floor = read_bytes(model) / speed * 1000
    step = statistics.median(times)
    say("text of one answer", f"{1000 / step:.1f} tokens/s")
    say(f"its floor by memory bandwidth ({speed / 1e9:.0f} GB/s)", f"{1000 / floor:.1f} tokens/s")
    say("share of the floor reached", f"{floor / step * 100:.0f} %")


def together(model: OmniModel, clock: Clock, count: int, seconds: float, wish: Wish) -> None:
    """So many answers in speech at once."""
    stage = Stage(model, count, 256)
    items = [spoken(seconds, seed) for seed in range(count)]
    for item in items:
        stage.follow(view(turn=begun(item, item.audio.duration_ms * 16 - 320 if item.audio else 0), name=item.id))
    start = clock()
    answers: list[Answer] = [stage.begin(view(item, name=item.id), wish) for item in items]
    first, samples, steps = [0.0] * count, [0] * count, []
    while not all(answer.done for answer in answers):
        before = time.perf_counter()
        results = stage.advance(answers)
        steps.append((time.perf_counter() - before) * 1000)
        for at, pieces in enumerate(results):
            spoke = sum(len(piece.pcm) // 2 for piece in pieces if isinstance(piece, SpeechChunk))
            samples[at] += spoke
            first[at] = first[at] or (time.perf_counter() - start if spoke else 0.0)
    wall = time.perf_counter() - start
    for item, answer in zip(items, answers, strict=True):
        stage.end(item.id, [answer])
    audio = min(samples) / model.output_rate
    slow = sorted(steps)[int(len(steps) * 0.95)]
    shown = f"step {statistics.median(steps):.1f}/{slow:.1f} ms p50/p95, first speech {max(first) * 1000:.0f} ms"
    say(f"{count} answers of {audio:.1f} s: {shown}", f"real-time factor {wall / audio:.2f}")


def now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=9.3, help="of the user's speech")
    parser.add_argument("--answer", type=float, default=4.0, help="seconds of each answer's speech")
    parser.add_argument("--conversations", default="1,2,4,8")
    parser.add_argument("--no-graphs", action="store_true", help="eager steps on a GPU")
    options = parser.parse_args()
    device: str = options.device
    counts = [int(count) for count in options.conversations.split(",")]

    def clock() -> float:
        return now(device)

    with torch.inference_mode():
        start = clock()
        frame_ms = 80.0 if options.size == "30b-a3b" else 20.0
        limits = Limits(context=4096, answers=max(counts), frames=int(options.answer * 1000 / frame_ms))
        model = build(options.size, device, limits, graphs=not options.no_graphs)
        parameters = sum(p.numel() for p in model.model.parameters())
        say(f"{options.size} on {device}, {parameters / 1e9:.3f} G parameters, built in", f"{clock() - start:.1f} s")
        start = clock()
        model.record_steps()
        say("steps recorded in", f"{clock() - start:.1f} s")
        item = spoken(options.seconds, 99)
        wish = Wish(SamplingParams(), int(limits.frames * 0.3) + 1, model.speakers[0], seed=1)
        prefill(model, clock, item)
        first_pieces(model, clock, item, wish)
        decode(model, item, device)
        together(model, clock, 1, options.seconds, wish)
        for count in counts:
            together(model, clock, count, options.seconds, wish)
    if device.startswith("cuda"):
        say("peak memory on the device", f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    say("peak memory of the process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
