"""GA conversations, event by event: unmodified clients rely on these orders."""

from __future__ import annotations

import asyncio

import pytest

from echosight.engines import GenerationSummary, TextChunk
from echosight.errors import EngineFailure
from echosight.events import Usage
from tests.fakes import ScriptedEngine, words
from tests.wire.realtime_rig import QUIET, Client, client

ANSWER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
]


async def test_a_turn_that_the_server_detects() -> None:
    async with client() as talk:
        await talk.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
        await talk.speak()
        await talk.until("rate_limits.updated")
        transcription = "conversation.item.input_audio_transcription"
        order = [name for name in talk.since("input_audio_buffer.speech_started") if not name.startswith(transcription)]
        assert order == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            *ANSWER,
        ]
        assert talk.names.index(f"{transcription}.delta") > talk.names.index("conversation.item.done")
        ids = {
            event["item_id"] for event in talk.seen if event["type"].startswith(("input_audio_buffer", transcription))
        }
        assert len(ids) == 1
        completed = next(event for event in talk.seen if event["type"] == f"{transcription}.completed")
        assert completed["transcript"] == "what was said"
        assert completed["usage"]["type"] == "duration"
        assert completed["usage"]["seconds"] > 0.5
        added = next(event for event in talk.seen if event["type"] == "conversation.item.added")
        assert added["item"]["content"] == [{"type": "input_audio", "transcript": None}]
        assert added["item"]["status"] == "completed"


async def test_speech_times_are_those_of_the_audio() -> None:
    async with client() as talk:
        await talk.hear(1_000, QUIET)
        await talk.speak()
        started = await talk.until("input_audio_buffer.speech_started")
        stopped = await talk.until("input_audio_buffer.speech_stopped")
        # A window is 32 ms, and the pre-roll is 300 ms.
        assert abs(started["audio_start_ms"] - 700) <= 32
        assert abs(stopped["audio_end_ms"] - 1_600) <= 32


async def test_a_turn_that_the_client_commits() -> None:
    async with client() as talk:
        await talk.update(audio={"input": {"turn_detection": None}})
        await talk.speak()
        await talk.send("input_audio_buffer.commit")
        await talk.until("conversation.item.done")
        assert talk.names[-3:] == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
        await talk.send("response.create")
        await talk.until("rate_limits.updated")
        assert talk.since("response.created") == ANSWER


async def test_the_response_object() -> None:
    usage = Usage(input_text=3, input_audio=4, cached=2, output_text=5, output_audio=6)
    async with client(ScriptedEngine([[*words("hello there"), GenerationSummary(usage)]])) as talk:
        await talk.write("hi")
        await talk.send("response.create", response={"metadata": {"topic": "greeting"}})
        created = (await talk.until("response.created"))["response"]
        done = await talk.done()
    assert created["status"] == "in_progress"
    assert created["usage"] is None
    assert created["output"] == []
    assert created["metadata"] == done["metadata"] == {"topic": "greeting"}
    assert created["audio"]["output"] == {"format": {"type": "audio/pcm", "rate": 24_000}, "voice": "alloy"}
    assert created["conversation_id"] == done["conversation_id"] is not None
    assert done["status"] == "completed"
    assert done["status_details"] is None
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "hello there"}]
    assert done["usage"] == {
        "total_tokens": 18,
        "input_tokens": 7,
        "output_tokens": 11,
        "input_token_details": {
            "text_tokens": 3,
            "audio_tokens": 4,
            "image_tokens": 0,
            "cached_tokens": 2,
            "cached_tokens_details": {"text_tokens": 2, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": 5, "audio_tokens": 6},
    }


async def test_a_response_in_text_only() -> None:
    async with client(ScriptedEngine([[TextChunk("hello there")]])) as talk:
        assert (await talk.update(output_modalities=["text"]))["output_modalities"] == ["text"]
        await talk.write("hi")
        await talk.send("response.create")
        done = await talk.done()
        assert not any("audio" in name for name in talk.since("response.created"))
        assert (await talk.until("rate_limits.updated")) == talk.seen[-1]
    assert done["output"][0]["content"] == [{"type": "output_text", "text": "hello there"}]
    assert talk.engine.options[0].speech is False
    part = next(event for event in talk.seen if event["type"] == "response.content_part.done")["part"]
    assert part == {"type": "text", "text": "hello there"}


async def _interrupted(talk: Client) -> tuple[str, dict[str, object]]:
    """Speak over a response whose first word was sent; the id of its item, and the response as it ended."""
    assert talk.engine.gate is not None
    await talk.write("hi")
    await talk.send("response.create")
    for _ in range(2):
        talk.engine.gate.release()
    item = (await talk.until("response.output_audio.delta"))["item_id"]
    talk.bench.clock.now += 0.05
    await talk.hear(200)
    return item, await talk.done()


async def test_barge_in_ends_every_open_part() -> None:
    engine = ScriptedEngine([words("one two three four")], gate=asyncio.Semaphore(0))
    async with client(engine) as talk:
        item, response = await _interrupted(talk)
        assert talk.since("input_audio_buffer.speech_started") == [
            "input_audio_buffer.speech_started",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
        ]
        assert response["status"] == "cancelled"
        assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert response["output"] == [
            {
                "id": item,
                "object": "realtime.item",
                "type": "message",
                "status": "incomplete",
                "role": "assistant",
                "content": [{"type": "output_audio", "transcript": "one"}],
            }
        ]
        await talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=50)
        truncated = await talk.until("conversation.item.truncated")
        assert (truncated["item_id"], truncated["content_index"], truncated["audio_end_ms"]) == (item, 0, 50)


async def test_without_interrupt_response_the_response_goes_on() -> None:
    engine = ScriptedEngine([words("one two three")], gate=asyncio.Semaphore(0))
    async with client(engine) as talk:
        turns = {"type": "server_vad", "interrupt_response": False, "create_response": False}
        await talk.update(audio={"input": {"turn_detection": turns}})
        assert engine.gate is not None
        await talk.write("hi")
        await talk.send("response.create")
        await talk.until("response.created")
        await talk.speak()
        for _ in range(9):
            engine.gate.release()
        assert (await talk.done())["status"] == "completed"
        assert "input_audio_buffer.committed" in talk.names
        assert talk.names.count("response.created") == 1


async def test_speech_that_still_plays_is_truncated_without_an_event() -> None:
    async with client(ScriptedEngine([words("one two three four")])) as talk:
        await talk.write("hi")
        await talk.send("response.create")
        item = (await talk.done())["output"][0]["id"]
        await talk.until("rate_limits.updated")
        talk.bench.clock.now += 0.15
        await talk.hear(200)
        await talk.until("input_audio_buffer.speech_started")
        await talk.send("conversation.item.retrieve", item_id=item)
        event = await talk.receive()
        assert event["type"] == "conversation.item.retrieved"
        assert event["item"]["content"][0]["transcript"] == "one two"


async def test_the_client_cancels_a_response() -> None:
    engine = ScriptedEngine([words("one two three")], gate=asyncio.Semaphore(1))
    async with client(engine) as talk:
        await talk.write("hi")
        await talk.send("response.create")
        turn = (await talk.until("response.created"))["response"]["id"]
        await talk.send("response.cancel", response_id=turn)
        response = await talk.done()
    assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}


async def test_a_limit_of_tokens_makes_the_response_incomplete() -> None:
    async with client(ScriptedEngine([[TextChunk("cut"), GenerationSummary(finish="length")]])) as talk:
        await talk.write("hi")
        await talk.send("response.create", response={"max_output_tokens": 7})
        response = await talk.done()
    assert response["status"] == "incomplete"
    assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert response["max_output_tokens"] == 7
    assert talk.engine.options[0].max_output_tokens == 7


async def test_an_engine_that_breaks_fails_the_response_only() -> None:
    async with client(ScriptedEngine([[EngineFailure("It broke")], words("well again")])) as talk:
        await talk.write("hi")
        await talk.send("response.create")
        response = await talk.done()
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "engine_failed"
        await talk.send("response.create")
        assert (await talk.done())["status"] == "completed"


async def test_speech_that_cannot_be_transcribed() -> None:
    async with client(ScriptedEngine(transcripts=[EngineFailure("No ears")])) as talk:
        turns = {"type": "server_vad", "create_response": False}
        await talk.update(audio={"input": {"transcription": {"model": "whisper-1"}, "turn_detection": turns}})
        await talk.speak()
        failed = await talk.until("conversation.item.input_audio_transcription.failed")
        assert failed["error"]["message"] == "No ears"
        assert failed["content_index"] == 0


async def test_a_session_that_only_transcribes() -> None:
    async with client(transcription_only=True) as talk:
        assert talk.seen[0]["session"]["type"] == "transcription"
        assert "output" not in talk.seen[0]["session"]["audio"]
        await talk.speak()
        completed = await talk.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == "what was said"
        await talk.send("response.create")
        assert (await talk.error())["message"] == "A transcription session makes no responses."
    assert talk.engine.conversations == []


async def test_the_model_responds_to_silence_after_the_idle_timeout() -> None:
    async with client() as talk:
        turns = {"type": "server_vad", "idle_timeout_ms": 5_000}
        await talk.update(audio={"input": {"turn_detection": turns}})
        await talk.write("hi")
        await talk.send("response.create")
        await talk.until("rate_limits.updated")
        talk.bench.clock.now += 10
        for _ in range(55):
            await talk.hear(100, QUIET)
        timed_out = await talk.receive()
        assert timed_out["type"] == "input_audio_buffer.timeout_triggered"
        assert abs(timed_out["audio_end_ms"] - timed_out["audio_start_ms"] - 5_000) <= 64
        committed = await talk.receive()
        assert (committed["type"], committed["item_id"]) == ("input_audio_buffer.committed", timed_out["item_id"])
        assert (await talk.done())["status"] == "completed"


@pytest.mark.parametrize(("transcript", "is_over"), [("this is all", True), ("i went to the", False), ("wait,", False)])
async def test_speech_that_sounds_incomplete_gets_more_time(transcript: str, is_over: bool) -> None:
    async with client(ScriptedEngine(transcripts=[transcript])) as talk:
        turns = {"type": "semantic_vad", "eagerness": "high", "create_response": False}
        await talk.update(audio={"input": {"turn_detection": turns}})
        await talk.hear(600)
        for _ in range(10):
            await talk.hear(100, QUIET)
        assert len(talk.bench.session.conversation.items) == is_over
        for _ in range(12):
            await talk.hear(100, QUIET)
        assert len(talk.bench.session.conversation.items) == 1
