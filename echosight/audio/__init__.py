"""Audio: PCM arithmetic, file formats, codecs, sample rate conversion and the Silero VAD network."""
