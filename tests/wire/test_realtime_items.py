"""Items that clients and functions add, images, and responses out of band, event by event."""

from __future__ import annotations

import asyncio
import base64
import io

from PIL import Image

from echosight.engines import ToolCallChunk
from tests.fakes import ScriptedEngine, words
from tests.wire.realtime_rig import client


async def test_function_calls() -> None:
    call = [ToolCallChunk("call_1", "look_up", '{"what"'), ToolCallChunk("call_1", "look_up", ': "it"}')]
    async with client(ScriptedEngine([call, words("found it")])) as talk:
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
    assert talk.engine.conversations[0].tools == (tool,)
    assert talk.engine.options[0].tool_choice == "required"
    assert [item.role for item in talk.engine.conversations[1]] == ["user", "assistant", "tool"]


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
    (frame,) = talk.engine.conversations[0].items[0].images
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
    (shown,) = talk.engine.conversations
    assert [item.text for item in shown] == ["remember this", "sum up"]
    assert talk.engine.options[0].instructions == "briefly"
    assert [item.id for item in talk.bench.session.conversation] == [first]


async def test_a_response_out_of_band_runs_next_to_another() -> None:
    engine = ScriptedEngine([words("the answer"), words("a summary")], gate=asyncio.Semaphore(0))
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
    (shown,) = talk.engine.conversations
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
