"""The log-mel spectrogram of Whisper-like encoders, computed while the audio comes in packets of any size."""

from __future__ import annotations

import torch


class StreamingLogMel:
    """Frames equal to those of transformers' `WhisperFeatureExtractor` over the whole audio, window by window.

    One difference: values are clamped to 8 (in log10) below the loudest value *so far*; the extractor takes the loudest
    of the whole recording. The result depends on the windows, never on the packets.

    `filters` is (frequencies, mels) float32. A window is `window` frames of `hop` samples. With `zero_tail` the audio
    is followed by zeros (Qwen2.5's extractor pads to its longest input), else by a reflection (Qwen3's does not pad).
    """

    def __init__(self, filters: torch.Tensor, *, n_fft: int, hop: int, window: int, zero_tail: bool) -> None:
        self._filters = filters
        self._hann = torch.hann_window(n_fft)
        self._n_fft = n_fft
        self._hop = hop
        self._window = window
        self._zero_tail = zero_tail
        self._half = n_fft // 2
        self._peak = -float("inf")
        self._samples = 0
        self._frames = 0
        self._buffer = torch.zeros(0)
        """Samples from half a transform before the next frame's centre on."""
        self._started = False

    @property
    def samples(self) -> int:
        """Samples pushed so far."""
        return self._samples

    @property
    def samples_needed(self) -> int:
        """Samples, counted from the first, that complete the next window."""
        return (self._frames + self._window - 1) * self._hop + self._half

    def push(self, samples: torch.Tensor) -> list[torch.Tensor]:
        """Add samples (n,) float32 in [-1, 1]; returns the windows that they complete, each (window, mels)."""
        self._samples += len(samples)
        self._buffer = torch.cat([self._buffer, samples])
        if not self._started:
            if len(self._buffer) <= self._half:
                return []
            self._reflect_start()
        windows = []
        while len(self._buffer) >= (self._window - 1) * self._hop + self._n_fft:
            windows.append(self._compute(self._window))
        return windows

    def flush(self) -> torch.Tensor:
        """At the end of the audio: the remaining frames, (at most window, mels)."""
        total = -(-self._samples // self._hop) if self._zero_tail else self._samples // self._hop
        count = total - self._frames
        if count <= 0:
            return self._filters.new_zeros(0, self._filters.shape[1])
        if not self._started:
            self._buffer = torch.nn.functional.pad(self._buffer, (0, max(0, self._half + 1 - len(self._buffer))))
            self._reflect_start()
        missing = max(0, (count - 1) * self._hop + self._n_fft - len(self._buffer))
        if self._zero_tail:
            self._buffer = torch.nn.functional.pad(self._buffer, (0, missing))
        else:
            self._buffer = torch.cat([self._buffer, self._buffer[-missing - 1 : -1].flip(0)])
        return self._compute(count)

    def _reflect_start(self) -> None:
        self._buffer = torch.cat([self._buffer[1 : self._half + 1].flip(0), self._buffer])
        self._started = True

    def _compute(self, count: int) -> torch.Tensor:
        """The next `count` frames, (count, mels)."""
        spans = self._buffer[: (count - 1) * self._hop + self._n_fft].unfold(0, self._n_fft, self._hop)
        power = torch.fft.rfft(spans * self._hann).abs() ** 2
        frames = (power @ self._filters).clamp(min=1e-10).log10()
        self._buffer = self._buffer[count * self._hop :]
        self._frames += count
        self._peak = max(self._peak, float(frames.max()))
        scaled: torch.Tensor = (frames.clamp(min=self._peak - 8.0) + 4.0) / 4.0
        return scaled
