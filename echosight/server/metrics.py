"""Metrics for Prometheus: sessions, inputs, responses by outcome, and how long their stages took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from echosight.errors import EchoSightError
from echosight.events import ErrorRaised, Input, ResponseEnded, Waterfall

CONTENT_TYPE = CONTENT_TYPE_LATEST

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)


class _InputCounter(Collector):
    """Inputs by kind, in a plain dict: audio comes fifty times a second and session, and a `Counter` takes a lock."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("echosight_inputs", "Inputs received by sessions", labels=["kind"])
        for kind, count in self.counts.items():
            family.add_metric([kind], count)
        yield family


class Metrics:
    """The metrics of one server, in a registry of their own: servers can share a process."""

    def __init__(self, version: str, engine: str) -> None:
        self._registry = CollectorRegistry()
        self._sessions = Gauge("echosight_sessions", "Sessions that are open now", registry=self._registry)
        self._responses = Counter("echosight_turns", "Responses that ended", ["outcome"], registry=self._registry)
        self._inputs = _InputCounter()
        self._registry.register(self._inputs)
        self._failures = Counter("echosight_failures", "Errors reported to clients", ["code"], registry=self._registry)
        self._stages = Histogram(
            "echosight_turn_stage_seconds",
            "From the end of the user's speech until the response reached a stage",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        build = Info("echosight_build", "Version of the server and name of its engine", registry=self._registry)
        build.info({"version": version, "engine": engine})

    def count_sessions(self, count: Callable[[], int]) -> None:
        """Have the number of sessions read from `count` at every scrape."""
        self._sessions.set_function(lambda: float(count()))

    def input(self, event: Input) -> None:
        """Count an input by its kind."""
        kind = type(event).__name__
        self._inputs.counts[kind] = self._inputs.counts.get(kind, 0) + 1

    def failure(self, failure: ErrorRaised | EchoSightError) -> None:
        self._failures.labels(failure.code).inc()

    def response_ended(self, event: ResponseEnded) -> None:
        """Count a response and the stages that it reached."""
        self._responses.labels(event.outcome).inc()
        for stage in fields(Waterfall):
            reached_ms = getattr(event.waterfall, stage.name)
            if reached_ms is not None:
                self._stages.labels(stage.name).observe(reached_ms / 1000)

    def render(self) -> bytes:
        """The text that Prometheus reads; its media type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)
