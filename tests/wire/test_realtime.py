"""GA conversations, event by event: unmodified clients rely on these orders."""

from __future__ import annotations

import asyncio
import base64
import io

import pytest
from PIL import Image

from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.engines.stub import FakeEngine, words
from echosight.errors import EngineFailure
from echosight.events import Usage
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
    async with client(FakeEngine([[*words("hello there"), GenerationSummary(usage)]])) as talk:
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
    async with client(FakeEngine([[TextChunk("hello there")]])) as talk:
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
    engine = FakeEngine([words("one two three four")], gate=asyncio.Semaphore(0))
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
    engine = FakeEngine([words("one two three")], gate=asyncio.Semaphore(0))
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
    async with client(FakeEngine([words("one two three four")])) as talk:
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
    engine = FakeEngine([words("one two three")], gate=asyncio.Semaphore(1))
    async with client(engine) as talk:
        await talk.write("hi")
        await talk.send("response.create")
        turn = (await talk.until("response.created"))["response"]["id"]
        await talk.send("response.cancel", response_id=turn)
        response = await talk.done()
    assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}


async def test_function_calls() -> None:
    call = [ToolCallChunk("call_1", "look_up", '{"what"'), ToolCallChunk("call_1", "look_up", ': "it"}')]
    async with client(FakeEngine([call, words("found it")])) as talk:
        tool = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}
        await talk.update(tools=[tool], tool_choice="required")
        await talk.write("find it")
        await talk.send("response.create")
        response = await talk.done()
        assert talk.since("response.created") == [
            "response.created",
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
        ]
        added, done = (
            next(e for e in talk.seen if e["type"] == f"response.output_item.{s}") for s in ("added", "done")
        )
        assert (added["item"]["arguments"], added["item"]["status"]) == ("", "in_progress")
        assert (done["item"]["arguments"], done["item"]["status"]) == ('{"what": "it"}', "completed")
        arguments = next(e for e in talk.seen if e["type"] == "response.function_call_arguments.done")
        assert (arguments["name"], arguments["call_id"]) == ("look_up", "call_1")
        assert response["output"] == [done["item"]]
        output = {"type": "function_call_output", "call_id": "call_1", "output": "here"}
        await talk.send("conversation.item.create", item=output)
        await talk.until("conversation.item.done")
        await talk.send("response.create")
        await talk.done()
    assert talk.engine.asked[0].tools == (tool,)
    assert talk.engine.options[0].tool_choice == "required"
    assert [item.role for item in talk.engine.asked[1]] == ["user", "assistant", "tool"]


async def test_an_image_waits_for_response_create() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    async with client() as talk:
        content = [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": uri, "detail": "low"}]
        await talk.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        added, done = await talk.receive(), await talk.receive()
        assert (added["type"], done["type"]) == ("conversation.item.added", "conversation.item.done")
        assert added["item"]["content"] == content
        await talk.send("response.create")
        await talk.done()
    (frame,) = talk.engine.asked[0].items[0].images
    assert (frame.width, frame.height, frame.data) == (4, 3, file.getvalue())


async def test_out_of_band_responses_leave_no_trace() -> None:
    async with client() as talk:
        first = await talk.write("remember this")
        question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "sum up"}]}
        items = [{"type": "item_reference", "id": first}, question]
        await talk.send("response.create", response={"conversation": "none", "input": items, "instructions": "briefly"})
        response = await talk.done()
        assert response["conversation_id"] is None
        assert "conversation.item.added" not in talk.since("response.created")
        assert response["output"][0]["content"][0]["transcript"] == "hello there"
    (shown,) = talk.engine.asked
    assert [item.text for item in shown] == ["remember this", "sum up"]
    assert talk.engine.options[0].instructions == "briefly"
    assert [item.id for item in talk.bench.session.conversation] == [first]


async def test_a_response_out_of_band_runs_next_to_another() -> None:
    engine = FakeEngine([words("the answer"), words("a summary")], gate=asyncio.Semaphore(0))
    async with client(engine) as talk:
        await talk.write("hello")
        await talk.send("response.create")
        answer = (await talk.until("response.created"))["response"]["id"]
        await talk.send("response.create", response={"conversation": "none", "metadata": {"topic": "summary"}})
        out_of_band = (await talk.until("response.created"))["response"]
        assert out_of_band["metadata"] == {"topic": "summary"}
        await talk.send("response.create")
        assert (await talk.error())["code"] == "conversation_already_has_active_response"
        assert engine.gate is not None
        for _ in range(20):
            engine.gate.release()
        done = [await talk.done(), await talk.done()]
        spoken = {response["id"]: response["output"][0]["content"][0]["transcript"] for response in done}
        assert spoken == {answer: "the answer", out_of_band["id"]: "a summary"}
        item_ids = {
            event["item_id"] for event in talk.seen if event.get("response_id") == answer and "item_id" in event
        }
        assert item_ids == {response["output"][0]["id"] for response in done if response["id"] == answer}


async def test_a_response_may_have_a_format_of_its_own() -> None:
    async with client() as talk:
        await talk.write("hello")
        await talk.send("response.create", response={"audio": {"output": {"format": {"type": "audio/pcmu"}}}})
        response = await talk.done()
        assert response["audio"]["output"]["format"] == {"type": "audio/pcmu"}
        deltas = [event["delta"] for event in talk.seen if event["type"] == "response.output_audio.delta"]
        sound = b"".join(map(base64.b64decode, deltas))
        assert len(sound) == 8 * 200
        await talk.send("response.create")
        assert (await talk.done())["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}


async def test_a_response_to_other_input_stays_in_the_conversation() -> None:
    async with client() as talk:
        first = await talk.write("never mind")
        question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "only this"}]}
        await talk.send("response.create", response={"input": [question]})
        response = await talk.done()
        assert response["conversation_id"] is not None
    (shown,) = talk.engine.asked
    assert [item.text for item in shown] == ["only this"]
    assert [item.id for item in talk.bench.session.conversation] == [first, response["output"][0]["id"]]


async def test_items_can_be_inserted_retrieved_and_deleted() -> None:
    async with client() as talk:
        first = await talk.write("first")
        system = {"type": "message", "id": "mine", "role": "system", "content": [{"type": "input_text", "text": "be"}]}
        await talk.send("conversation.item.create", item=system, previous_item_id="root")
        assert (await talk.until("conversation.item.added"))["previous_item_id"] is None
        await talk.send("conversation.item.delete", item_id=first)
        assert (await talk.until("conversation.item.deleted"))["item_id"] == first
        await talk.send("conversation.item.retrieve", item_id="mine")
        found = (await talk.until("conversation.item.retrieved"))["item"]
        assert found == {**system, "object": "realtime.item", "status": "completed"}


async def test_retrieved_items_include_their_speech() -> None:
    async with client() as talk:
        await talk.update(audio={"input": {"turn_detection": None}})
        await talk.hear(500)
        await talk.send("input_audio_buffer.commit")
        item = (await talk.until("conversation.item.done"))["item"]
        assert "audio" not in item["content"][0]
        await talk.send("conversation.item.retrieve", item_id=item["id"])
        content = (await talk.until("conversation.item.retrieved"))["item"]["content"][0]
        assert abs(len(base64.b64decode(content["audio"])) - 2 * 24 * 500) < 200


async def test_a_limit_of_tokens_makes_the_response_incomplete() -> None:
    async with client(FakeEngine([[TextChunk("cut"), GenerationSummary(finish="length")]])) as talk:
        await talk.write("hi")
        await talk.send("response.create", response={"max_output_tokens": 7})
        response = await talk.done()
    assert response["status"] == "incomplete"
    assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert response["max_output_tokens"] == 7
    assert talk.engine.options[0].max_output_tokens == 7


async def test_an_engine_that_breaks_fails_the_response_only() -> None:
    async with client(FakeEngine([[EngineFailure("It broke")], words("well again")])) as talk:
        await talk.write("hi")
        await talk.send("response.create")
        response = await talk.done()
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "engine_failed"
        await talk.send("response.create")
        assert (await talk.done())["status"] == "completed"


async def test_speech_that_cannot_be_transcribed() -> None:
    async with client(FakeEngine(transcripts=[EngineFailure("No ears")])) as talk:
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
    assert talk.engine.asked == []


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
    async with client(FakeEngine(transcripts=[transcript])) as talk:
        turns = {"type": "semantic_vad", "eagerness": "high", "create_response": False}
        await talk.update(audio={"input": {"turn_detection": turns}})
        await talk.hear(600)
        for _ in range(10):
            await talk.hear(100, QUIET)
        assert len(talk.bench.session.conversation.items) == is_over
        for _ in range(12):
            await talk.hear(100, QUIET)
        assert len(talk.bench.session.conversation.items) == 1
