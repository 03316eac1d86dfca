"""Samples: PCM, file formats, codecs, resampling, and the Silero network."""
