"""Measures the µs that the VAD takes for a 32 ms window, compared with the upstream graph and with peers.

`uv run benchmarks/vad.py`; with the peers, `uv run --group peers-vad benchmarks/vad.py`. The peers do not support
batches of streams: for them a batch is as many consecutive windows of one stream.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

from echosight.audio.silero import MODEL_PATH
from echosight.turns.vad import BatchedVad
from vad_utils import WINDOW, default_model

Audio = npt.NDArray[np.int16]  # [steps, batch, 512]
Runner = Callable[[], object]

BATCHES = (1, 8, 32, 128)
ROUNDS = 15


def numpy_model(audio: Audio) -> Runner:
    model = default_model()
    states = [model.stream() for _ in range(audio.shape[1])]
    return lambda: [model.probabilities(windows, states) for windows in audio]


def awaited_by_sessions(audio: Audio) -> Runner:
    loop = asyncio.new_event_loop()
    vad = BatchedVad()
    pcm = [[window.tobytes() for window in stream] for stream in audio.swapaxes(0, 1)]

    async def user(windows: list[bytes]) -> None:
        stream = vad.stream()
        for window in windows:
            await stream.probability(window)

    async def users() -> None:
        await asyncio.gather(*map(user, pcm))

    return lambda: loop.run_until_complete(users())


def upstream(audio: Audio) -> Runner:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(MODEL_PATH), options, providers=["CPUExecutionProvider"])
    inputs = np.zeros((audio.shape[1], 64 + WINDOW), np.float32)
    rate = np.array(16_000)

    def run() -> list[Any]:
        inputs[:] = 0
        state = np.zeros((2, audio.shape[1], 128), np.float32)
        results = []
        for windows in audio:
            inputs[:, :64] = inputs[:, -64:]
            inputs[:, 64:] = windows / np.float32(32_768)
            probabilities, state = session.run(None, {"input": inputs, "state": state, "sr": rate})
            results.append(probabilities[:, 0])
        return results

    return run


def silero_wrapper(audio: Audio) -> Runner:
    silero_vad, torch = import_module("silero_vad"), import_module("torch")
    torch.set_num_threads(1)
    model = silero_vad.load_silero_vad(onnx=True)
    windows = [torch.from_numpy(window / np.float32(32_768)) for window in audio.reshape(-1, WINDOW)]
    return lambda: [model(window, 16_000).item() for window in windows]


def pipecat_model(audio: Audio) -> Runner:
    analyzer, pcm = _pipecat(), [window.tobytes() for window in audio.reshape(-1, WINDOW)]
    return lambda: [analyzer.voice_confidence(window) for window in pcm]


def pipecat_as_used(audio: Audio) -> Runner:
    analyzer, pcm = _pipecat(), [window.tobytes() for window in audio.reshape(-1, WINDOW)]
    loop = asyncio.new_event_loop()

    async def analyze() -> None:
        for window in pcm:
            await analyzer.analyze_audio(window)

    return lambda: loop.run_until_complete(analyze())


def _pipecat() -> Any:
    import_module("loguru").logger.remove()
    analyzer = import_module("pipecat.audio.vad.silero").SileroVADAnalyzer(sample_rate=16_000)
    analyzer.set_sample_rate(16_000)
    return analyzer


def faster_whisper(audio: Audio) -> Runner:
    model = import_module("faster_whisper.vad").get_vad_model()
    streams = [stream.reshape(-1) / np.float32(32_768) for stream in audio.swapaxes(0, 1)]
    return lambda: [model(stream) for stream in streams]


IMPLEMENTATIONS: dict[str, Callable[[Audio], Runner]] = {
    "this model (numpy)": numpy_model,
    "this model, awaited by sessions": awaited_by_sessions,
    "upstream graph, ONNX Runtime, 1 thread": upstream,
    "silero-vad OnnxWrapper": silero_wrapper,
    "pipecat voice_confidence": pipecat_model,
    "pipecat analyze_audio (as used)": pipecat_as_used,
    "faster-whisper, whole recordings at once": faster_whisper,
}


def measure(implementation: Callable[[Audio], Runner], batch: int) -> tuple[float, float]:
    """(wall, CPU) µs per window in the best round; CPU time includes all threads of the process."""
    steps = max(4, 512 // batch)
    audio = (3000 * np.random.default_rng(0).standard_normal((steps, batch, WINDOW))).astype(np.int16)
    run = implementation(audio)
    run()
    rounds = []
    for _ in range(ROUNDS):
        started, cpu_started = time.perf_counter(), time.process_time()
        run()
        rounds.append((time.perf_counter() - started, time.process_time() - cpu_started))
    wall, cpu = min(rounds)
    return wall / (steps * batch) * 1e6, cpu / (steps * batch) * 1e6


def max_difference() -> float:
    """The largest difference from the probabilities of the upstream graph, over 100 windows of 8 streams of noise."""
    random = np.random.default_rng(1)
    audio = (random.uniform(0, 9000, (100, 8, 1)) * random.standard_normal((100, 8, WINDOW))).astype("<i2")
    ours: Any = numpy_model(audio)()
    reference: Any = upstream(audio)()
    return float(np.abs(np.array(ours) - np.array(reference)).max())


def main() -> None:
    print(f"µs per window of 32 ms: wall (CPU of all threads), best of {ROUNDS} rounds\n")
    print(f"{'':42}" + "".join(f"{f'batch {batch}':>16}" for batch in BATCHES))
    for name, implementation in IMPLEMENTATIONS.items():
        try:
            cells = [measure(implementation, batch) for batch in BATCHES]
        except ImportError:
            print(f"{name:42}{'not installed':>16}")
            continue
        print(f"{name:42}" + "".join(f"{f'{wall:.1f} ({cpu:.1f})':>16}" for wall, cpu in cells), flush=True)
    print(f"\nLargest difference of a probability from the upstream graph: {max_difference():.1e}")


if __name__ == "__main__":
    main()
