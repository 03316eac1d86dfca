"""The session has the one copy of its options: a client changes what it names, and is shown what is in force."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from echosight.events import UpdateOptions
from echosight.media import AudioChunk
from echosight.options import GenerateOptions, SessionOptions, TurnDetectionOptions
from echosight.wire.echosight import EchoSightWire
from echosight.wire.echosight_messages import CustomOptions, option_changes
from echosight.wire.realtime import RealtimeWire, SessionTemplate
from tests.rig import Bench, bench
from tests.wire.realtime_rig import client

Json = dict[str, Any]


async def configure(b: Bench, wire: EchoSightWire, **fields: Any) -> None:
    await b.feed(*wire.receive(orjson.dumps({"type": "configure", **fields}).decode()))


@pytest.mark.parametrize(
    "fields", [{}, {"language": "en"}, {"levels": True}, {"turn_detection": {"silence_duration_ms": 500}}]
)
async def test_a_configure_keeps_what_init_options_chose(fields: Json) -> None:
    async with bench() as b:
        wire = EchoSightWire("me")
        await configure(b, wire)
        sample = AudioChunk(b"\1\2" * 160)
        await b.feed(UpdateOptions({"response": {"voice_sample": sample}}))
        chosen = CustomOptions(use_audio_prompt=1, vad_threshold=0.8, assistant_prompt="Be kind.")
        await b.feed(UpdateOptions(option_changes(chosen, b.session.options)))
        await configure(b, wire, **fields)
        options = b.session.options
        assert options.instructions == "Be kind."
        assert options.response.voice_sample == sample
        assert options.turn_detection is not None
        assert options.turn_detection.threshold == 0.8


async def test_a_client_that_is_not_recorded_stays_so_when_it_changes_something_else() -> None:
    async with bench() as b:
        wire = EchoSightWire("me")
        await configure(b, wire, record=False)
        await configure(b, wire, language="en")
        assert not b.session.options.record


async def test_init_options_leaves_alone_what_it_does_not_name() -> None:
    async with bench(instructions="As the server says.", turn_detection=None) as b:
        await b.feed(
            UpdateOptions(option_changes(CustomOptions(use_audio_prompt=0, vad_threshold=0.8), b.session.options))
        )
        assert b.session.options.turn_detection is None, "a threshold does not switch detection on"
        assert b.session.options.instructions == "As the server says."


async def test_a_configure_that_names_one_field_of_turn_detection_keeps_the_others() -> None:
    async with bench() as b:
        wire = EchoSightWire("me")
        await configure(b, wire, turn_detection={"type": "semantic_vad", "eagerness": "low", "idle_timeout_ms": 9_000})
        await configure(b, wire, turn_detection={"threshold": 0.7})
        turn = b.session.options.turn_detection
        assert turn is not None
        assert (turn.threshold, turn.min_endpointing_delay_ms, turn.max_endpointing_delay_ms) == (0.7, 800, 8_000)
        assert turn.idle_timeout_ms == 9_000
        await configure(b, wire, turn_detection={"type": "server_vad"})
        assert b.session.options.turn_detection is not None
        assert b.session.options.turn_detection.max_endpointing_delay_ms == 0


async def test_updates_that_are_sent_before_the_first_is_answered_add_up() -> None:
    async with client() as talk:
        audio: list[Json] = [{"output": {"speed": 1.25}}, {"output": {"voice": "two"}}]
        for model, value in zip(("first", "second"), audio, strict=True):
            await talk.send("session.update", session={"type": "realtime", "model": model, "audio": value})
        await talk.send("response.create", response={"instructions": "briefly"})
        first, second = [(await talk.until("session.updated"))["session"] for _ in range(2)]
        shown = [(s["model"], s["audio"]["output"]["voice"], s["audio"]["output"]["speed"]) for s in (first, second)]
        assert shown == [("first", "alloy", 1.25), ("second", "two", 1.25)]
        await talk.done()
        (options,) = talk.engine.options
        assert (options.speed, options.voice, options.instructions) == (1.25, "two", "briefly")


async def test_an_update_that_names_one_field_of_turn_detection_keeps_the_others() -> None:
    async with client() as talk:
        await talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 640}}})
        session = await talk.update(audio={"input": {"turn_detection": {"threshold": 0.7}}})
        detection = session["audio"]["input"]["turn_detection"]
        assert (detection["silence_duration_ms"], detection["threshold"]) == (640, 0.7)
        session = await talk.update(audio={"input": {"turn_detection": {"silence_duration_ms": None}}})
        detection = session["audio"]["input"]["turn_detection"]
        assert (detection["silence_duration_ms"], detection["threshold"]) == (384, 0.7), "null is the server's default"


async def test_another_type_of_turn_detection_starts_from_the_servers_defaults() -> None:
    async with client() as talk:
        await talk.update(audio={"input": {"turn_detection": {"threshold": 0.7, "interrupt_response": False}}})
        await talk.update(audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}})
        turn = talk.bench.session.options.turn_detection
        assert turn == TurnDetectionOptions(min_endpointing_delay_ms=300, max_endpointing_delay_ms=2_000)
        await talk.update(audio={"input": {"turn_detection": None}})
        session = await talk.update(audio={"input": {"turn_detection": {}}})
        assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
        assert talk.bench.session.options.turn_detection == TurnDetectionOptions(min_endpointing_delay_ms=384)


async def test_eagerness_stays_until_another_is_named() -> None:
    async with client() as talk:
        for named, shown, max_delay_ms in (
            ({"type": "semantic_vad", "eagerness": "low"}, "low", 8_000),
            ({"type": "semantic_vad", "create_response": False}, "low", 8_000),
            ({"eagerness": None}, "auto", 4_000),
        ):
            session = await talk.update(audio={"input": {"turn_detection": named}})
            assert session["audio"]["input"]["turn_detection"]["eagerness"] == shown
            assert talk.bench.session.options.turn_detection is not None
            assert talk.bench.session.options.turn_detection.max_endpointing_delay_ms == max_delay_ms


async def test_the_bridge_is_shown_the_detection_in_force() -> None:
    async with client() as talk:
        detection: Json = {"type": "server_vad", "aggressiveness": 3, "end_ms": 320.4}
        await talk.send("session.update", session={"turn_detection": detection})
        shown = (await talk.until("session.updated"))["session"]["turn_detection"]
        assert (shown["aggressiveness"], shown["threshold"]) == (3, 0.8)
        assert (shown["end_ms"], shown["silence_duration_ms"]) == (320, 320)
        await talk.send("session.update", session={"turn_detection": {"threshold": 0.6}})
        shown = (await talk.until("session.updated"))["session"]["turn_detection"]
        assert (shown["threshold"], shown["end_ms"]) == (0.6, 320)
        assert "aggressiveness" not in shown, "it does not say what is in force any more"


async def test_a_voice_that_no_update_names_is_the_engines_own() -> None:
    async with client() as talk:
        session = await talk.update(instructions="be brief")
        assert session["audio"]["output"]["voice"] == "alloy"
        assert talk.bench.session.options.response.voice is None


async def test_a_session_that_only_transcribes_is_shown_that_it_does_not_respond() -> None:
    async with client(transcription_only=True) as talk:
        shown = talk.seen[0]["session"]["audio"]["input"]["turn_detection"]
        assert (shown["create_response"], shown["interrupt_response"]) == (False, False)


def test_a_key_chooses_the_options_that_its_session_is_opened_with() -> None:
    defaults = SessionOptions(language="en", response=GenerateOptions(voice="one", speaking_style="calmly"))
    wire = RealtimeWire(SessionTemplate(voices=("one", "two"), media_sample_rate=48_000), defaults)
    wire.configure({"type": "realtime", "instructions": "a key's", "audio": {"output": {"voice": "two"}}})
    wire.configure({"instructions": "a form's", "turn_detection": None}, flat=True)
    options = wire.opening_options()
    assert (options.instructions, options.turn_detection, options.language) == ("a form's", None, "en")
    assert options.response == GenerateOptions(voice="two", speaking_style="calmly")
    assert options.output_sample_rate == 48_000
    assert wire.session_json(options)["instructions"] == "a form's"


@pytest.mark.parametrize(("server", "key", "shown"), [("", None, "bridge"), ("server", None, ""), ("", "key", "")])
def test_bridge_clients_have_default_instructions_where_nobody_chose_some(
    server: str, key: str | None, shown: str
) -> None:
    wire = RealtimeWire(SessionTemplate(bridge_instructions="bridge"), SessionOptions(instructions=server))
    if key is not None:
        wire.configure({"type": "realtime", "instructions": key})
    (update,) = wire.receive('{"type":"session.update","session":{"voice":"one"}}')
    assert isinstance(update, UpdateOptions)
    assert update.changes.get("instructions", "") == shown
    assert update.changes["turn_detection"] is None
