"""Unmodified third-party clients, each driven by a small script."""
