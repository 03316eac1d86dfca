"""Whose turn it is: audio in, voice activity, turn signals, end of turn."""
