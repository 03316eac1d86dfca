"""One conversation in three dialects, and the session object of each."""

from __future__ import annotations

import asyncio
import base64

import pytest

from echosight.audio.g711 import alaw_encode, ulaw_decode, ulaw_encode
from tests.fakes import ScriptedEngine, words
from tests.wire.realtime_rig import LOUD, QUIET, client, pcm


async def test_the_first_session_object_has_the_fields_of_ga_and_beta() -> None:
    async with client() as talk:
        session = talk.seen[0]["session"]
    assert session["type"] == "realtime"
    assert session["audio"]["input"]["turn_detection"] == session["turn_detection"]
    assert (session["output_modalities"], session["modalities"]) == (["audio"], ["text", "audio"])
    assert session["input_audio_format"] == "pcm16"
    assert session["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}


async def test_updates_merge_deeply_and_null_clears() -> None:
    async with client() as talk:
        first = await talk.update(audio={"input": {"transcription": {"model": "whisper-1", "language": "de"}}})
        assert first["audio"]["input"]["turn_detection"]["type"] == "server_vad"
        await talk.update(instructions="be brief", tools=[{"type": "function", "name": "f"}])
        second = await talk.update(audio={"output": {"speed": 1.25}})
        assert second["audio"]["input"]["transcription"] == {"model": "whisper-1", "language": "de"}
        assert second["instructions"] == "be brief"
        assert "modalities" not in second
        options = talk.bench.session.options
        assert (options.language, options.response.speed, options.instructions) == ("de", 1.25, "be brief")
        cleared = {"transcription": None, "turn_detection": None, "noise_reduction": None}
        third = await talk.update(audio={"input": cleared}, instructions="", tools=[])
        assert third["audio"]["input"] == {"format": {"type": "audio/pcm", "rate": 24_000}, **cleared}
        assert (third["instructions"], third["tools"]) == ("", [])
        assert talk.bench.session.options.turn_detection is None


async def test_turn_detection_is_shown_with_its_defaults() -> None:
    async with client() as talk:
        session = await talk.update(audio={"input": {"turn_detection": {"type": "semantic_vad"}}})
        switches = {"create_response": True, "interrupt_response": True}
        assert session["audio"]["input"]["turn_detection"] == {"type": "semantic_vad", "eagerness": "auto", **switches}
        session = await talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 0.7}}})
        detection = session["audio"]["input"]["turn_detection"]
        assert detection["threshold"] == 0.7
        assert detection.keys() - switches.keys() == {
            "type",
            "threshold",
            "prefix_padding_ms",
            "silence_duration_ms",
            "idle_timeout_ms",
        }


async def test_the_engine_uses_its_own_voice_for_unknown_names() -> None:
    async with client() as talk:
        assert (await talk.update(audio={"output": {"voice": "marin"}}))["audio"]["output"]["voice"] == "marin"
        assert talk.bench.session.options.response.voice is None
        await talk.update(audio={"output": {"voice": {"id": "two"}}})
        assert talk.bench.session.options.response.voice == "two"


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
async def test_g711_speech_in_and_out(law: str) -> None:
    encode = ulaw_encode if law == "audio/pcmu" else alaw_encode
    async with client() as talk:
        telephone = {"format": {"type": law}}
        await talk.update(audio={"input": {**telephone, "turn_detection": None}, "output": telephone})
        sound = base64.b64encode(encode(LOUD * 8 * 500)).decode()
        await talk.send("input_audio_buffer.append", audio=sound)
        await talk.send("input_audio_buffer.commit")
        await talk.until("conversation.item.done")
        await talk.send("response.create")
        await talk.done()
        (item, _) = talk.bench.session.conversation
        assert item.audio is not None
        assert 490 <= item.audio.duration_ms <= 500
        deltas = [event["delta"] for event in talk.seen if event["type"] == "response.output_audio.delta"]
        audio = b"".join(base64.b64decode(delta) for delta in deltas)
        assert len(audio) == 8 * 200
        if law == "audio/pcmu":
            assert max(ulaw_decode(audio)) > 0


async def test_beta_names() -> None:
    async with client(beta=True) as talk:
        session = talk.seen[0]["session"]
        assert "audio" not in session
        await talk.send("session.update", session={"input_audio_transcription": {"model": "w"}, "temperature": 0.7})
        session = (await talk.until("session.updated"))["session"]
        assert (session["temperature"], session["max_response_output_tokens"]) == (0.7, "inf")
        await talk.speak()
        await talk.until("rate_limits.updated")
        transcribed = "conversation.item.input_audio_transcription"
        order = [n for n in talk.since("input_audio_buffer.speech_started") if not n.startswith(transcribed)]
        assert order == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.created",
            "response.created",
            "response.output_item.added",
            "conversation.item.created",
            "response.content_part.added",
            "response.audio_transcript.delta",
            "response.audio.delta",
            "response.audio.done",
            "response.audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
            "rate_limits.updated",
        ]
        response = next(event for event in talk.seen if event["type"] == "response.done")["response"]
        assert response["modalities"] == ["text", "audio"]
        assert response["output_audio_format"] == "pcm16"
        assert response["output"][0]["content"] == [{"type": "audio", "transcript": "hello there"}]
    assert talk.engine.options[0].temperature == 0.7


async def test_beta_errors_name_beta_fields() -> None:
    async with client(beta=True) as talk:
        for session, code, param in (
            ({"speed": 9}, "invalid_value", "session.speed"),
            ({"input_audio_format": "mp3"}, "invalid_value", "session.input_audio_format"),
            ({"audio": {}}, "unknown_parameter", "session.audio"),
            ({"turn_detection": {"type": "server_vad", "x": 1}}, "unknown_parameter", "session.turn_detection.x"),
            ({"type": "realtime", "voice": "one"}, "unknown_parameter", "session.type"),
        ):
            await talk.send("session.update", session=session)
            error = await talk.error()
            assert (error["code"], error["param"]) == (code, param)
        await talk.send("response.create", response={"voice": 7})
        error = await talk.error()
        assert (error["code"], error["param"]) == ("invalid_type", "response.voice")
        assert "'response.voice'" in error["message"]


async def test_beta_sessions_that_only_transcribe_have_names_of_their_own() -> None:
    async with client(beta=True, transcription_only=True) as talk:
        await talk.send("transcription_session.update", session={"input_audio_transcription": {"language": "de"}})
        updated = await talk.until("transcription_session.updated")
        assert updated["session"]["input_audio_transcription"] == {"language": "de"}


async def test_a_beta_response_may_have_a_format_of_its_own() -> None:
    async with client(beta=True) as talk:
        await talk.write("hello", beta=True)
        await talk.send("response.create", response={"output_audio_format": "g711_alaw"})
        response = await talk.done()
        assert response["output_audio_format"] == "g711_alaw"
        deltas = [event["delta"] for event in talk.seen if event["type"] == "response.audio.delta"]
        assert len(b"".join(map(base64.b64decode, deltas))) == 8 * 200


async def test_functions_are_shown_with_their_type() -> None:
    async with client() as talk:
        session = await talk.update(tools=[{"name": "f"}], tool_choice={"type": "function", "name": "f"})
        assert session["tools"] == [{"name": "f", "type": "function"}]
        assert session["tool_choice"] == {"type": "function", "name": "f"}


async def test_a_flat_first_update_selects_the_bridge() -> None:
    async with client() as talk:
        await talk.send("session.update", session={"voice": "shimmer", "modalities": ["audio", "text"]})
        session = (await talk.until("session.updated"))["session"]
        assert (session["voice"], session["turn_detection"]) == ("shimmer", None)
        await talk.send("input_audio_buffer.append", audio=pcm(40))
        await talk.send("input_audio_buffer.commit")
        await talk.until("conversation.item.input_audio_transcription.completed")
        await talk.send("response.create")
        await talk.until("response.done")
        assert [name for name in talk.since("input_audio_buffer.committed") if "transcription" not in name] == [
            "input_audio_buffer.committed",
            "conversation.item.created",
            "response.created",
            "response.output_item.added",
            "conversation.item.created",
            "response.output_text.delta",
            "response.audio.delta",
            "response.audio.done",
            "response.output_text.done",
            "response.output_item.done",
            "response.done",
        ]
        done = next(event for event in talk.seen if event["type"] == "response.output_text.done")
        assert done["text"] == "hello there"


async def test_the_bridge_detects_turns_where_the_client_asks_for_it() -> None:
    async with client() as talk:
        detection = {"type": "server_vad", "silence_duration_ms": 320, "aggressiveness": 3, "max_ms": 9_000}
        await talk.send("session.update", session={"turn_detection": detection})
        await talk.until("session.updated")
        turn = talk.bench.session.options.turn_detection
        assert turn is not None
        assert (turn.min_endpointing_delay_ms, turn.max_turn_ms, turn.min_speech_ms) == (320, 9_000, 120)
        assert turn.threshold == pytest.approx(0.8)
        assert (turn.create_response, turn.interrupt_response) == (True, False)
        await talk.hear(600)
        await talk.hear(600, QUIET)
        await talk.until("response.done")
        await talk.send("session.update", session={"turn_detection": {"type": "none"}})
        await talk.until("session.updated")
        assert talk.bench.session.options.turn_detection is None


async def test_the_bridge_sends_two_events_for_a_cancelled_response() -> None:
    async with client(ScriptedEngine([words("one two")], gate=asyncio.Semaphore(1))) as talk:
        await talk.send("session.update", session={"voice": "shimmer"})
        await talk.until("session.updated")
        await talk.send("response.create")
        turn = (await talk.until("response.created"))["response"]["id"]
        await talk.send("response.cancel", response={"id": turn})
        assert (await talk.until("response.cancelled"))["response"] == {"id": turn}
        assert (await talk.until("response.done"))["response"]["status"] == "cancelled"


async def test_a_dialect_is_chosen_once() -> None:
    async with client() as talk:
        await talk.update(instructions="x")
        await talk.send("session.update", session={"voice": "shimmer"})
        assert (await talk.error())["code"] == "missing_required_parameter"
        await talk.write("hi")
    async with client() as talk:
        await talk.send("session.update", session={"voice": "shimmer", "turn_detection": {"type": "magic"}})
        assert (await talk.error())["param"] == "session.turn_detection.type"
        assert (await talk.update(instructions="GA after all"))["type"] == "realtime"
