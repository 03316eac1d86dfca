from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from echosight.errors import EngineFull
from echosight.events import ErrorRaised, ResponseEnded, Text, Waterfall
from echosight.server.metrics import Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus would read it."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        ",".join([sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))]): sample.value
        for family in families
        for sample in family.samples
    }


def test_responses_are_counted_by_outcome_and_stage() -> None:
    metrics = Metrics("1.2.3", "echo")
    metrics.response_ended(ResponseEnded("a", "completed", waterfall=Waterfall(endpoint=400, first_byte=460)))
    metrics.response_ended(ResponseEnded("b", "completed", waterfall=Waterfall(endpoint=200)))
    metrics.response_ended(ResponseEnded("c", "cancelled"))
    seen = samples(metrics)
    assert seen["echosight_turns_total,outcome=completed"] == 2
    assert seen["echosight_turns_total,outcome=cancelled"] == 1
    assert seen["echosight_turn_stage_seconds_count,stage=endpoint"] == 2
    assert round(seen["echosight_turn_stage_seconds_sum,stage=endpoint"], 6) == 0.6
    assert seen["echosight_turn_stage_seconds_bucket,le=0.3,stage=endpoint"] == 1
    assert seen["echosight_turn_stage_seconds_count,stage=first_byte"] == 1
    assert "echosight_turn_stage_seconds_count,stage=transcript" not in seen


def test_sessions_are_counted_at_every_scrape() -> None:
    metrics, sessions = Metrics("1", "echo"), ["a"]
    metrics.count_sessions(lambda: len(sessions))
    assert samples(metrics)["echosight_sessions"] == 1
    sessions.append("b")
    assert samples(metrics)["echosight_sessions"] == 2


def test_inputs_and_errors_are_counted_by_kind() -> None:
    metrics = Metrics("1.2.3", "echo")
    metrics.input(Text("secret words"))
    metrics.failure(ErrorRaised("invalid_audio", "no"))
    metrics.failure(EngineFull())
    seen = samples(metrics)
    assert seen["echosight_inputs_total,kind=Text"] == 1
    assert seen["echosight_failures_total,code=invalid_audio"] == 1
    assert seen["echosight_failures_total,code=engine_full"] == 1
    assert seen["echosight_build_info,engine=echo,version=1.2.3"] == 1
    assert b"secret" not in metrics.render()


def test_servers_in_one_process_share_no_metrics() -> None:
    one, other = Metrics("1", "a"), Metrics("1", "b")
    one.response_ended(ResponseEnded("t", "failed"))
    assert "echosight_turns_total,outcome=failed" not in samples(other)
