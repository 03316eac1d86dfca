"""Times the omni engines with random weights: `uv run --extra local benchmarks/omni.py --size tiny --device cpu`.

Sizes 3b, 7b (Qwen2.5-Omni) and 30b-a3b (Qwen3-Omni) need a GPU: `--size 7b --device cuda`. Measured: the prefill that
remains when the user stops speaking, against a prefill of the same speech in one pass; first text and first speech;
decoding against the time that reading the weights takes; and concurrent replies against real time.
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
from echosight.conversation import Item, pcm_part
from echosight.engines import SpeechChunk, TextChunk
from echosight.engines.omni.conversation_cache import ConversationCache, ConversationSnapshot
from echosight.engines.omni.generation import GenerationRequest
from echosight.engines.omni.model_runner import ModelRunner
from echosight.engines.omni.models.base import OmniModel
from echosight.engines.omni.models.state import Limits
from echosight.engines.runtime.sampling import SamplingParams
from echosight.media import INPUT_SAMPLE_RATE

SYSTEM = "You are a helpful assistant."
REPEATS = 5
TEXT_STEPS = 48
TEXT_TOKENS_PER_FRAME = 0.3
LAST_PACKET = INPUT_SAMPLE_RATE // 50
"""Samples that arrive with the end of the turn; everything before was prefilled."""
Clock = Callable[[], float]


def report(name: str, value: str) -> None:
    print(f"{name:<58} {value:>24}", flush=True)


def user_turn(seconds: float, seed: int = 0) -> Item:
    """A turn of noise."""
    noise = np.random.default_rng(seed).normal(0, 3000, int(seconds * INPUT_SAMPLE_RATE)).astype("<i2")
    return Item("user", (pcm_part(noise.tobytes()),), f"turn{seed}")


def before_last_packet(item: Item) -> Item:
    """The turn without its last packet."""
    assert item.audio is not None and item.audio.pcm is not None
    return Item("user", (pcm_part(item.audio.pcm[: -2 * LAST_PACKET]),), item.id)


def snapshot(*items: Item, turn: Item | None = None, conversation_id: str = "talk") -> ConversationSnapshot:
    return ConversationSnapshot(conversation_id, items, SYSTEM, turn)


def measure_prefill(model: OmniModel, clock: Clock, item: Item) -> None:
    """Between the end of speech and the first decode step: with prefill during speech, and without."""
    remaining: list[float] = []
    whole: list[float] = []
    tokens = 0
    for _ in range(REPEATS + 1):
        for times, during_speech in ((remaining, True), (whole, False)):
            cache = ConversationCache(model, model.limits.context_tokens)
            if during_speech:
                cache.prefill_turn(snapshot(turn=before_last_packet(item)))
            start = clock()
            cache.begin_reply(snapshot(item), None)
            times.append((clock() - start) * 1000)
            tokens = len(cache.context)
    after, one_pass = statistics.median(remaining[1:]), statistics.median(whole[1:])
    seconds = item.audio.duration_ms / 1000 if item.audio else 0
    report(f"prefill of {seconds:.1f} s of speech in one pass ({tokens} tokens)", f"{one_pass:.1f} ms")
    report("prefill that remains at the end of speech", f"{after:.1f} ms ({after / one_pass:.2f})")


def measure_first_chunks(model: OmniModel, clock: Clock, item: Item, request: GenerationRequest) -> None:
    """From the end of speech to the first text and the first speech of a single reply.

    Only the start waits for the device: waiting later would delay the vocoder's stream.
    """
    text, speech = [], []
    for _ in range(REPEATS + 1):
        runner = ModelRunner(model, 1, 256)
        runner.prefill(snapshot(turn=before_last_packet(item)))
        start = clock()
        generation = runner.start(snapshot(item), request)
        first_text = first_speech = 0.0
        while not first_speech:
            for chunk in runner.step([generation])[0]:
                first_text = first_text or (isinstance(chunk, TextChunk) and time.perf_counter() - start) or 0.0
                first_speech = first_speech or (isinstance(chunk, SpeechChunk) and time.perf_counter() - start) or 0.0
        runner.finish("talk", [generation])
        text.append(first_text * 1000)
        speech.append(first_speech * 1000)
    report("first text after the end of speech", f"{statistics.median(text[1:]):.1f} ms")
    report("first speech after the end of speech", f"{statistics.median(speech[1:]):.1f} ms")


def bandwidth(device: str) -> float:
    """Bytes that the device reads in a second, from a copy, which reads as much as it writes."""
    size = (2**30 if device.startswith("cuda") else 2**27) // 4
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    best = float("inf")
    for _ in range(8):
        start = now(device)
        target.copy_(source)
        best = min(best, now(device) - start)
    return 2 * 4 * size / best


def bytes_per_step(model: OmniModel) -> int:
    """Weights that one thinker step reads for one reply; of a mixture of experts, the selected ones."""
    config = model.thinker.config.text_config
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_experts", 1)
    layers = model.thinker.model.language_model.layers.named_parameters()
    total = sum(p.numel() * p.element_size() * (share if ".experts." in name else 1.0) for name, p in layers)
    head = model.thinker.lm_head.weight
    return int(total + head.numel() * head.element_size())


def measure_decoding(model: OmniModel, item: Item, device: str) -> None:
    """A text-only reply, against the time that reading the weights takes."""
    runner = ModelRunner(model, 1, 256)
    generation = runner.start(snapshot(item), GenerationRequest(SamplingParams(), TEXT_STEPS))
    runner.step([generation])
    times = []
    while not generation.done:
        start = time.perf_counter()
        runner.step([generation])
        times.append((time.perf_counter() - start) * 1000)
    runner.finish("talk", [generation])
    speed = bandwidth(device)
    floor = bytes_per_step(model) / speed * 1000
    step = statistics.median(times)
    report("text of one reply", f"{1000 / step:.1f} tokens/s")
    report(f"its limit by memory bandwidth ({speed / 1e9:.0f} GB/s)", f"{1000 / floor:.1f} tokens/s")
    report("share of the limit reached", f"{floor / step * 100:.0f} %")


def measure_concurrent(model: OmniModel, clock: Clock, count: int, seconds: float, request: GenerationRequest) -> None:
    """`count` spoken replies at once."""
    runner = ModelRunner(model, count, 256)
    items = [user_turn(seconds, seed) for seed in range(count)]
    for item in items:
        runner.prefill(snapshot(turn=before_last_packet(item), conversation_id=item.id))
    start = clock()
    generations = [runner.start(snapshot(item, conversation_id=item.id), request) for item in items]
    first, samples, steps = [0.0] * count, [0] * count, []
    while not all(generation.done for generation in generations):
        before = time.perf_counter()
        results = runner.step(generations)
        steps.append((time.perf_counter() - before) * 1000)
        for index, chunks in enumerate(results):
            new = sum(len(chunk.pcm) // 2 for chunk in chunks if isinstance(chunk, SpeechChunk))
            samples[index] += new
            first[index] = first[index] or (time.perf_counter() - start if new else 0.0)
    wall = time.perf_counter() - start
    for item, generation in zip(items, generations, strict=True):
        runner.finish(item.id, [generation])
    audio = min(samples) / model.output_rate
    slow = sorted(steps)[int(len(steps) * 0.95)]
    details = f"step {statistics.median(steps):.1f}/{slow:.1f} ms p50/p95, first speech {max(first) * 1000:.0f} ms"
    report(f"{count} replies of {audio:.1f} s: {details}", f"real-time factor {wall / audio:.2f}")


def now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=9.3, help="of the user's speech")
    parser.add_argument("--answer", type=float, default=4.0, help="seconds of speech of each reply")
    parser.add_argument("--conversations", default="1,2,4,8")
    parser.add_argument("--no-graphs", action="store_true", help="eager steps on a GPU")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    device: str = options.device
    counts = [int(count) for count in options.conversations.split(",")]

    def clock() -> float:
        return now(device)

    with torch.inference_mode():
        start = clock()
        frame_ms = 80.0 if options.size == "30b-a3b" else 20.0
        speech_frames = int(options.answer * 1000 / frame_ms)
        limits = Limits(context_tokens=4096, batch_size=max(counts), speech_frames=speech_frames)
        model = build(options.size, device, limits, graphs=not options.no_graphs)
        parameters = sum(p.numel() for p in model.model.parameters())
        report(f"{options.size} on {device}, {parameters / 1e9:.3f} G parameters, built in", f"{clock() - start:.1f} s")
        start = clock()
        model.record_steps()
        report("steps recorded in", f"{clock() - start:.1f} s")
        item = user_turn(options.seconds, 99)
        max_tokens = int(speech_frames * TEXT_TOKENS_PER_FRAME) + 1
        request = GenerationRequest(SamplingParams(), max_tokens, model.speakers[0], seed=1)
        measure_prefill(model, clock, item)
        measure_first_chunks(model, clock, item, request)
        measure_decoding(model, item, device)
        for count in (1, *counts):
            measure_concurrent(model, clock, count, options.seconds, request)
    if device.startswith("cuda"):
        report("peak memory on the device", f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    report("peak memory of the process", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
