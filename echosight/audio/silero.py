"""The network of `silero_vad.onnx` in numpy: voice activity detection without an ONNX runtime.

The weights are read from the .onnx file. One model serves any number of streams, each with its own `VadState`. Audio is
mono at 16 kHz, in windows of 512 samples (32 ms). Source of the network: Silero VAD 6.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CONTEXT", "MODEL_PATH", "SAMPLE_RATE", "WINDOW", "Samples", "SileroVADModel", "VadState"]

SAMPLE_RATE = 16_000
WINDOW = 512
CONTEXT = 64
"""Samples of the previous window in front of each window. Without them the output is useless (AUC 0.50), silently."""

MODEL_PATH = Path(__file__).parents[2] / "silero_vad.onnx"

Floats = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float32] | npt.NDArray[np.int16]

_HIDDEN = 128
_BINS = 129
_FRAME, _HOP, _FRAMES = 256, 128, 4
_FLOAT = 1  # TensorProto.DataType
_MAX_BATCH = 32  # in larger batches the intermediate results exceed the CPU cache, and a window costs more again
_WINDOWS_PER_PRODUCT = 4
_ZERO, _HALF = np.zeros((), np.float32), np.full((), 0.5, np.float32)
_SCALE = np.float32(1 / 32_768)


class VadState:
    """The state of one stream, float32 [320]: 64 samples of context, then the LSTM's h and c (128 each)."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = np.zeros(CONTEXT + 2 * _HIDDEN, np.float32)


class _Workspace:
    """Preallocated arrays for one batch size, with overlapping views that turn convolutions into matrix products."""

    def __init__(self, batch: int) -> None:
        self.state = _zeros(batch, CONTEXT + 2 * _HIDDEN)
        self.flat_state = self.state.reshape(-1)
        self.rows = list(self.state)
        self.context = self.state[:, :CONTEXT]
        self.h = self.state[:, CONTEXT:-_HIDDEN]
        self.c = self.state[:, -_HIDDEN:]

        self._allocate_spectrum(batch)
        self._allocate_convolutions(batch)
        self._allocate_lstm(batch)

    def _allocate_spectrum(self, batch: int) -> None:
        # As upstream, padded by reflection at the end: 576 samples become four frames of 256 samples, 128 apart.
        self.samples = _zeros(batch, CONTEXT + WINDOW + CONTEXT)
        self.left = self.samples[:, :CONTEXT]
        self.window = self.samples[:, CONTEXT:-CONTEXT]
        self.newest = self.samples[:, WINDOW:-CONTEXT]
        self.mirror = self.samples[:, WINDOW - 2 + CONTEXT : WINDOW - 2 : -1]
        self.right = self.samples[:, -CONTEXT:]
        self.frames = _unfold(self.samples, _FRAMES, _FRAME, _HOP)
        self.windowed = _zeros(batch, _FRAMES, _FRAME)
        self.spectrum: Any = np.zeros((batch, _FRAMES, _BINS), np.complex64)

    def _allocate_convolutions(self, batch: int) -> None:
        # Zero padding: a row on both sides for the first convolution, a row in front for the second, whose stride is 2.
        padded = _zeros(batch, _FRAMES + 2, _BINS)
        self.magnitude = padded[:, 1:-1]
        self.patches1 = _unfold(padded, _FRAMES, 3 * _BINS, _BINS)
        padded = _zeros(batch, _FRAMES + 1, 128)
        self.relu1 = padded[:, 1:]
        self.patches2 = _unfold(padded, 2, 3 * 128, 2 * 128)

        # Each input of a matrix product ends in a 1, which multiplies the bias.
        self.in1, self.values1 = _with_ones(batch, _FRAMES, 3 * _BINS)
        self.out1 = _zeros(batch * _FRAMES, 128)
        self.conv1 = self.out1.reshape(self.relu1.shape)
        self.in2, self.values2 = _with_ones(batch, 2, 3 * 128)
        self.out2 = _zeros(batch * 2, 64)
        self.conv2 = self.out2.reshape(batch, 128)
        self.in3, self.values3 = _with_ones(batch, 128)
        self.out3 = _zeros(batch, 64)
        self.in4, self.values4 = _with_ones(batch, 64)
        self.out4 = _zeros(batch, 128)

    def _allocate_lstm(self, batch: int) -> None:
        self.lstm_in, values = _with_ones(batch, 2 * _HIDDEN)
        self.features, self.recurrent = values[:, :_HIDDEN], values[:, _HIDDEN:]
        self.gates = _zeros(batch, 4 * _HIDDEN)
        self.sigmoids = self.gates[:, : 3 * _HIDDEN]
        self.i, self.f, self.o, self.g = (self.gates[:, k : k + _HIDDEN] for k in range(0, 4 * _HIDDEN, _HIDDEN))
        self.tmp = _zeros(batch, _HIDDEN)
        self.head_in, self.rectified = _with_ones(batch, _HIDDEN)


def _zeros(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


def _with_ones(*shape: int) -> tuple[Floats, Floats]:
    """An array [rows, columns + 1] whose last column is 1, and a view of it without that column in `shape`."""
    full = np.ones((*shape[:-1], shape[-1] + 1), np.float32)
    return full.reshape(-1, shape[-1] + 1), full[..., :-1]


def _unfold(a: Floats, rows: int, width: int, step: int) -> Floats:
    """A view of overlapping windows of each batch entry: [batch, …] -> [batch, rows, width]."""
    return np.lib.stride_tricks.as_strided(a, (len(a), rows, width), (a.strides[0], 4 * step, 4), writeable=False)


class SileroVADModel:
    """Silero VAD 6.2 at 16 kHz, shared by all streams. It is thread-safe.

    Its probabilities equal those of the upstream graph within 1e-5. Raises OSError if `path` cannot be read, and
    ValueError if it is another model.
    """

    def __init__(self, path: str | Path = MODEL_PATH) -> None:
        try:
            self._unpack(_read_weights(Path(path)))
        except (LookupError, ValueError, TypeError, StopIteration) as error:
            raise ValueError(
                f"{path} is not the Silero VAD model; expected silero_vad.onnx of Silero VAD 6.2"
            ) from error
        self._workspaces: dict[int, _Workspace] = {}

    def _unpack(self, weights: dict[str, Floats]) -> None:
        def conv(layer: int, taps: slice) -> Floats:
            kernel = weights[f"encoder.{layer}.reparam_conv.weight"][:, :, taps].transpose(2, 1, 0)
            return np.vstack([kernel.reshape(-1, kernel.shape[-1]), weights[f"encoder.{layer}.reparam_conv.bias"]])

        # The basis is a windowed Fourier matrix. Its first row is the constant term, and so the window itself.
        self._hann = weights["stft.forward_basis_buffer"][0, 0].copy()
        # In the last two layers only two taps and one tap fall on data; the others fall on padding.
        self._convs = [conv(0, slice(0, 3)), conv(1, slice(0, 3)), conv(2, slice(1, 3)), conv(3, slice(1, 2))]

        # Gates in the order i, f, o, g, so that the three sigmoids are adjacent. Their weights are halved because
        # sigmoid(x) = tanh(x / 2) / 2 + 1 / 2: a single tanh computes all four gates.
        order = np.r_[0:256, 384:512, 256:384]
        half = np.where(np.arange(512) < 384, _HALF, np.float32(1))
        bias = weights["decoder.rnn.bias_ih"] + weights["decoder.rnn.bias_hh"]
        lstm = np.vstack([weights["decoder.rnn.weight_ih"].T, weights["decoder.rnn.weight_hh"].T, bias])
        self._lstm = np.ascontiguousarray(lstm[:, order] * half)
        self._head = np.append(weights["decoder.decoder.2.weight"], weights["decoder.decoder.2.bias"]) * _HALF

    def stream(self) -> VadState:
        """The state of a new stream."""
        return VadState()

    def probabilities(self, windows: Samples, states: Sequence[VadState]) -> Floats:
        """Speech probabilities, float32 [B], of the next window of B different streams; updates their `states`.

        `windows` is [B, 512], float32 in [-1, 1] or int16. Raises ValueError for any other shape.
        """
        if windows.shape != (len(states), WINDOW):
            raise ValueError(
                f"expected {len(states)} windows of {WINDOW} samples, got an array of shape {windows.shape}"
            )
        if not len(states):
            return np.zeros(0, np.float32)
        if len(states) <= _MAX_BATCH:
            return self._step(windows, states)
        starts = range(0, len(states), _MAX_BATCH)
        return np.concatenate(
            [self.probabilities(windows[k : k + _MAX_BATCH], states[k : k + _MAX_BATCH]) for k in starts]
        )

    def scan(self, audio: Samples) -> Floats:
        """Probabilities of all windows of a recording, float32 [ceil(n / 512)]; the last one is padded with silence."""
        windows = np.zeros((-(-len(audio) // WINDOW), WINDOW), np.int16 if audio.dtype == np.int16 else np.float32)
        windows.reshape(-1)[: len(audio)] = audio
        states = [self.stream()]
        found = [self.probabilities(windows[k : k + 1], states) for k in range(len(windows))]
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    def _step(self, windows: Samples, states: Sequence[VadState]) -> Floats:
        size = len(states)
        # Removed while in use: another thread then creates its own.
        ws = self._workspaces.pop(size, None) or _Workspace(size)
        np.concatenate([state.values for state in states], out=ws.flat_state)
        ws.left[...] = ws.context
        if windows.dtype.kind == "i":
            np.multiply(windows, _SCALE, out=ws.window)
        else:
            ws.window[...] = windows
        ws.context[...] = ws.newest
        self._encode(ws)
        found = self._decode(ws)
        for state, values in zip(states, ws.rows, strict=True):
            state.values[...] = values
        self._workspaces[size] = ws
        return found

    def _encode(self, ws: _Workspace) -> None:
        """Samples to features: magnitudes of the short-time Fourier transform, then four convolutions."""
        w1, w2, w3, w4 = self._convs
        ws.right[...] = ws.mirror
        np.multiply(ws.frames, self._hann, out=ws.windowed)
        np.abs(np.fft.rfft(ws.windowed, out=ws.spectrum), out=ws.magnitude)
        ws.values1[...] = ws.patches1
        _product(ws.in1, w1, ws.out1, 4 * _WINDOWS_PER_PRODUCT)
        np.maximum(ws.conv1, _ZERO, out=ws.relu1)
        ws.values2[...] = ws.patches2
        _product(ws.in2, w2, ws.out2, 2 * _WINDOWS_PER_PRODUCT)
        np.maximum(ws.conv2, _ZERO, out=ws.values3)
        np.dot(ws.in3, w3, out=ws.out3)
        np.maximum(ws.out3, _ZERO, out=ws.values4)
        np.dot(ws.in4, w4, out=ws.out4)
        np.maximum(ws.out4, _ZERO, out=ws.features)

    def _decode(self, ws: _Workspace) -> Floats:
        """Features to probabilities, float32 [B]: one LSTM step, then a linear layer on its rectified output."""
        ws.recurrent[...] = ws.h
        _product(ws.lstm_in, self._lstm, ws.gates, _WINDOWS_PER_PRODUCT)
        np.tanh(ws.gates, out=ws.gates)
        ws.sigmoids *= _HALF
        ws.sigmoids += _HALF
        ws.c *= ws.f
        np.multiply(ws.i, ws.g, out=ws.tmp)
        ws.c += ws.tmp
        np.tanh(ws.c, out=ws.tmp)
        np.multiply(ws.o, ws.tmp, out=ws.h)
        np.maximum(ws.h, _ZERO, out=ws.rectified)
        found: Floats = np.tanh(np.dot(ws.head_in, self._head))
        found *= _HALF
        found += _HALF
        return found


def _product(rows: Floats, matrix: Floats, out: Floats, step: int) -> None:
    """`rows @ matrix`, `step` rows at a time: this is fastest in OpenBLAS, and starts no threads that busy-wait."""
    for k in range(0, len(rows), step):
        np.dot(rows[k : k + step], matrix, out=out[k : k + step])


def _read_weights(path: Path) -> dict[str, Floats]:
    """The float constants of the 16 kHz graph: {last part of the name: array}.

    An ONNX file is a protocol buffers message; the indices are the field numbers of onnx.proto.
    """
    weights: dict[str, Floats] = {}
    graph = _fields(_fields(memoryview(path.read_bytes()))[7][0])
    attributes = (_fields(attribute) for node in graph[1] for attribute in _fields(node)[5])
    branch = next(_fields(a[6][0]) for a in attributes if a[1] == [b"then_branch"])
    for node in map(_fields, branch[1]):
        if node[4] == [b"Constant"]:
            tensor = _fields(_fields(node[5][0])[5][0])
            if tensor[2] == [_FLOAT]:
                name = bytes(node[2][0]).decode().rpartition("__")[2]
                weights[name] = np.frombuffer(tensor[9][0] if tensor[9] else b"", "<f4").reshape(tensor[1])
    return weights


def _fields(message: memoryview) -> dict[int, list[Any]]:
    """A protocol buffers message: {field number: values}, integers or the bytes of nested messages."""
    found: dict[int, list[Any]] = defaultdict(list)
    offset = 0
    while offset < len(message):
        key, offset = _varint(message, offset)
        if key & 7 == 0:
            value, offset = _varint(message, offset)
            found[key >> 3].append(value)
        else:
            size, offset = _varint(message, offset) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], offset)
            found[key >> 3].append(message[offset : offset + size])
            offset += size
    return found


def _varint(message: memoryview, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset
