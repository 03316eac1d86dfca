"""Speech to text, one file per provider."""

STREAM_CLOSED = "The speech-to-text stream is closed"
"""Message of the `EngineFailure` that calls on a closed stream raise."""
