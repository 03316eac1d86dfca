"""The log-mel spectrogram that Whisper-like encoders hear, from audio in packets of any size."""

from __future__ import annotations

import torch


class StreamingLogMel:
    """Frames equal to those of transformers' `WhisperFeatureExtractor` over the whole audio, window by window.

    Its dynamic range is clamped to 8 (in log10) below the loudest value *so far*, where the extractor takes the loudest
    of the whole recording: the only difference, and one that depends on windows, never on packets.

    `filters` is (frequencies, mels). A window is `window` frames of `hop` samples. `zero_tail`: past the end the
    extractor sees zeros (Qwen2.5 pads to its longest input), else a reflection (Qwen3 does not pad).
    """

    def __init__(self, filters: torch.Tensor, *, n_fft: int, hop: int, window: int, zero_tail: bool) -> None:
        self._filters = filters
        self._hann = torch.hann_window(n_fft)
        self._n_fft = n_fft
        self._hop = hop
        self._window = window
        self._zero_tail = zero_tail
        self._half = n_fft // 2
        self._loudest = -float("inf")
        self._samples = 0
        self._frames = 0
        self._rest = torch.zeros(0)
        """Samples from half a transform before the next frame's centre on."""
        self._begun = False

    @property
    def samples(self) -> int:
        """Samples pushed so far."""
        return self._samples

    @property
    def needed(self) -> int:
        """Samples (from the first) that complete the next window."""
        return (self._frames + self._window - 1) * self._hop + self._half

    def push(self, samples: torch.Tensor) -> list[torch.Tensor]:
        """Take float samples (-1 to 1); returns the windows they complete, each (window, mels)."""
        self._samples += len(samples)
        self._rest = torch.cat([self._rest, samples])
        if not self._begun:
            if len(self._rest) <= self._half:
                return []
            self._reflect_start()
        windows = []
        while len(self._rest) >= (self._window - 1) * self._hop + self._n_fft:
            windows.append(self._take(self._window))
        return windows

    def finish(self) -> torch.Tensor:
        """The frames left at the end of the audio, (fewer than window + 1, mels)."""
        whole = -(-self._samples // self._hop) if self._zero_tail else self._samples // self._hop
        count = whole - self._frames
        if count <= 0:
            return self._filters.new_zeros(0, self._filters.shape[1])
        if not self._begun:
            self._rest = torch.nn.functional.pad(self._rest, (0, max(0, self._half + 1 - len(self._rest))))
            self._reflect_start()
        missing = max(0, (count - 1) * self._hop + self._n_fft - len(self._rest))
        if self._zero_tail:
            self._rest = torch.nn.functional.pad(self._rest, (0, missing))
        else:
            self._rest = torch.cat([self._rest, self._rest[-missing - 1 : -1].flip(0)])
        return self._take(count)

    def _reflect_start(self) -> None:
        self._rest = torch.cat([self._rest[1 : self._half + 1].flip(0), self._rest])
        self._begun = True

    def _take(self, count: int) -> torch.Tensor:
        spans = self._rest[: (count - 1) * self._hop + self._n_fft].unfold(0, self._n_fft, self._hop)
        power = torch.fft.rfft(spans * self._hann).abs() ** 2
        frames = (power @ self._filters).clamp(min=1e-10).log10()
        self._rest = self._rest[count * self._hop :]
        self._frames += count
        self._loudest = max(self._loudest, float(frames.max()))
        scaled: torch.Tensor = (frames.clamp(min=self._loudest - 8.0) + 4.0) / 4.0
        return scaled
