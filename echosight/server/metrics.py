"""What is measured, for Prometheus: sessions, turns by outcome, and how long each stage of a turn took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from echosight.errors import EchoSightError
from echosight.events import ErrorRaised, Input, ResponseEnded, Waterfall

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)


class Metrics:
    """The figures of one server. Each has a registry of its own, so servers can share a process."""

    def __init__(self, version: str, engine: str) -> None:
        self._registry = CollectorRegistry()
        self._sessions = Gauge("echosight_sessions", "Sessions now", registry=self._registry)
        self._turns = Counter("echosight_turns", "Answers that ended", ["outcome"], registry=self._registry)
        self._inputs = Counter("echosight_inputs", "Inputs taken in", ["kind"], registry=self._registry)
        self._failures = Counter("echosight_failures", "Failures told to clients", ["code"], registry=self._registry)
        self._stages = Histogram(
            "echosight_turn_stage_seconds",
            "From the end of the user's speech until a stage of the turn was reached",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        Info("echosight_build", "What runs", registry=self._registry).info({"version": version, "engine": engine})

    def count_sessions(self, count: Callable[[], int]) -> None:
        """Where to ask for the number of sessions when somebody looks."""
        self._sessions.set_function(lambda: float(count()))

    def input(self, event: Input) -> None:
        self._inputs.labels(type(event).__name__).inc()

    def failure(self, failure: ErrorRaised | EchoSightError) -> None:
        self._failures.labels(failure.code).inc()

    def turn_ended(self, event: ResponseEnded) -> None:
        """Count an answer and the stages that it reached."""
        self._turns.labels(event.outcome).inc()
        for stage in fields(Waterfall):
            reached = getattr(event.waterfall, stage.name)
            if reached is not None:
                self._stages.labels(stage.name).observe(reached / 1000)

    def render(self) -> bytes:
        """The text that Prometheus reads; its type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)
