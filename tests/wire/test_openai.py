"""The plain OpenAI endpoints' formats: transcripts, completions and stop sequences."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echosight.conversation import AudioPart, ToolResult
from echosight.engines import Chunk, GenerationSummary, TextChunk, ToolCallChunk
from echosight.errors import InputError
from echosight.events import Usage
from echosight.media import Transcript, Word
from echosight.wire.openai.chat_completions import CompletionBuilder, Request, StopSequences
from echosight.wire.openai.transcription import format_transcript, sse_events

TRANSCRIPT = Transcript("Hello there. Bye.", (Word(0, 5), Word(400, 12), Word(2_000, 17)), language="en")


def test_a_transcript_has_a_media_type_and_a_body() -> None:
    media_type, body = format_transcript(TRANSCRIPT, 2.6, "json")
    assert media_type == "application/json"
    assert orjson.loads(body) == {"text": "Hello there. Bye.", "usage": {"type": "duration", "seconds": 3}}
    assert format_transcript(TRANSCRIPT, 2.6, "text") == ("text/plain", b"Hello there. Bye.\n")
    media_type, body = format_transcript(TRANSCRIPT, 2.6, "verbose_json")
    assert [word["word"] for word in orjson.loads(body)["words"]] == ["Hello", "there.", "Bye."]


def test_subtitles_have_one_cue_for_each_segment() -> None:
    assert format_transcript(TRANSCRIPT, 2.6, "srt") == (
        "text/plain",
        b"1\n00:00:00,000 --> 00:00:02,000\nHello there.\n\n2\n00:00:02,000 --> 00:00:02,600\nBye.\n",
    )
    assert format_transcript(TRANSCRIPT, 2.6, "vtt") == (
        "text/vtt",
        b"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nHello there.\n\n00:00:02.000 --> 00:00:02.600\nBye.\n",
    )


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(InputError) as refused:
        format_transcript(TRANSCRIPT, 2.6, "yaml")
    assert refused.value.param == "response_format"


def test_a_streamed_transcript_is_a_delta_and_the_whole_text() -> None:
    first, second, last, _ = sse_events(TRANSCRIPT, 2.6).split(b"\n\n")
    assert orjson.loads(first.removeprefix(b"data: "))["delta"] == TRANSCRIPT.text
    assert orjson.loads(second.removeprefix(b"data: "))["text"] == TRANSCRIPT.text
    assert last == b"data: [DONE]"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", max_size=3), max_size=3), st.lists(st.integers(1, 4)))
def test_text_ends_before_the_first_stop_sequence(text: str, sequences: list[str], sizes: list[int]) -> None:
    stops = StopSequences(sequences)
    output, position = "", 0
    for size in [*sizes, len(text)]:
        if not stops.found:
            output += stops.push(text[position : position + size])
            position += size
    output += stops.flush()
    ends = [index for sequence in sequences if sequence and (index := text.find(sequence)) >= 0]
    assert stops.found == bool(ends)
    assert text.startswith(output)
    if not ends:
        assert output == text
    else:
        assert not any(sequence in output for sequence in sequences if sequence)


def test_chunks_and_the_whole_completion_say_the_same() -> None:
    builder = CompletionBuilder("chatcmpl_1", "echo")
    generated: list[Chunk] = [
        TextChunk("Hello"),
        ToolCallChunk("call_1", "look_up", '{"what"'),
        ToolCallChunk("call_1", "look_up", ': "it"}'),
        GenerationSummary(Usage(input_text=3, output_text=4)),
    ]
    chunks = [builder.start(), *filter(None, map(builder.feed, generated)), *builder.finish(include_usage=True)]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas if "content" in delta] == ["", "Hello"]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [call["function"]["arguments"] for call in calls] == ['{"what"', ': "it"}']
    assert [call.get("id") for call in calls] == ["call_1", None]
    (choice,) = builder.to_json()["choices"]
    assert choice["message"]["content"] == "Hello"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "look_up", "arguments": '{"what": "it"}'}
    assert choice["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def request(*messages: dict[str, Any]) -> Request:
    return Request.model_validate({"messages": list(messages)})


def test_messages_become_items() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(bytes(320)).decode(), "format": "pcm16"}}
    conversation = request(
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [audio, {"type": "text", "text": "hi"}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ).conversation(10_000, 10)
    assert [item.role for item in conversation] == ["system", "user", "assistant", "tool"]
    speech = conversation.items[1].audio
    assert isinstance(speech, AudioPart)
    assert speech.pcm is not None
    assert speech.duration_ms == len(speech.pcm) // 32
    assert conversation.items[3].parts == (ToolResult("c", "42"),)


def test_an_error_in_a_message_names_its_content() -> None:
    content = [{"type": "text", "text": "hi"}, {"type": "input_audio", "input_audio": {"data": "?"}}]
    with pytest.raises(InputError) as refused:
        request({"role": "user", "content": content}).conversation(10_000, 10)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "messages[0].content[1]")
    assert refused.value.message == "messages[0].content[1].input_audio.data is not base64"
