"""Unmodified clients of other people, each driven by a small script of its own."""
