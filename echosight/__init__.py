"""EchoSight: a conversation core for live voice and vision, and the protocols around it."""

__version__ = "0.1.0"
