"""Observers of a session's inputs and outputs: the log and the metrics, and a recording where the client allows it."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import get_args

from echosight import events as ev
from echosight.server.metrics import Metrics
from echosight.session.outbox import Observer

log = logging.getLogger(__name__)

_INPUTS = frozenset(get_args(ev.Input))


def measure(session_id: str, metrics: Metrics) -> Observer:
    """Count what happens in a session, and log each response that ends; never its text or audio."""

    def observe(event: ev.Input | ev.Output) -> None:
        if type(event) in _INPUTS:
            metrics.input(event)  # type: ignore[arg-type]
            return
        match event:
            case ev.ResponseEnded():
                metrics.response_ended(event)
                _log_response(session_id, event)
            case ev.ErrorRaised():
                metrics.failure(event)
            case _:
                pass

    return observe


def _log_response(session_id: str, event: ev.ResponseEnded) -> None:
    times = ((stage.name, getattr(event.waterfall, stage.name)) for stage in fields(event.waterfall))
    stages = " ".join(f"{name}_ms={ms:.0f}" for name, ms in times if ms is not None)
    outcome = event.outcome if event.reason is None else f"{event.outcome} reason={event.reason}"
    log.info("response ended session=%s response=%s outcome=%s %s", session_id, event.response_id, outcome, stages)


def if_recording_allowed(write: Observer) -> Observer:
    """Pass events on to a recording, except while the client has switched recording off."""
    allowed = True

    def observe(event: ev.Input | ev.Output) -> None:
        nonlocal allowed
        if isinstance(event, ev.OptionsUpdated):
            allowed = event.options.record
        if allowed:
            write(event)

    return observe
