"""Truncation cuts the model's history at the word, so the model does not remember unheard speech."""

from __future__ import annotations

import asyncio

import pytest

from echosight.conversation import AudioPart
from tests.fakes import ScriptedEngine, words
from tests.wire.realtime_rig import Client, client

TEXT = "it was the best of times, it was the worst of times, it was the age of wisdom"
WORD_MS = 130
LENGTH_MS = WORD_MS * len(TEXT.split())


def text_until(ms: int) -> str:
    """The words of the response that begin before `ms`."""
    return " ".join(TEXT.split()[: -(-ms // WORD_MS)])


async def response_item(talk: Client) -> str:
    await talk.write("go on")
    await talk.send("response.create")
    item: str = (await talk.done())["output"][0]["id"]
    await talk.until("rate_limits.updated")
    return item


@pytest.mark.parametrize("ms", range(0, LENGTH_MS + 1, 100))
async def test_only_words_that_had_begun_remain(ms: int) -> None:
    async with client(ScriptedEngine([words(TEXT, WORD_MS)])) as talk:
        item = await response_item(talk)
        await talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=ms)
        assert (await talk.until("conversation.item.truncated"))["audio_end_ms"] == ms
        await talk.send("conversation.item.retrieve", item_id=item)
        kept = (await talk.until("conversation.item.retrieved"))["item"]
        assert kept["content"] == [{"type": "output_audio", "transcript": text_until(ms)}]
        assert kept["status"] == "incomplete"
        await talk.send("response.create")
        await talk.done()
    _, response = talk.engine.conversations[1].items[:2]
    (part,) = response.parts
    assert isinstance(part, AudioPart)
    assert (part.transcript, part.duration_ms) == (text_until(ms), ms)
    assert response.version == 2, "an engine must see that its cache of the item no longer holds"


async def test_the_clients_truncation_replaces_the_estimate_by_the_clock() -> None:
    """The session estimates how much was played; the client's own account counts, be it more or less."""
    async with client(ScriptedEngine([words(TEXT, WORD_MS)])) as talk:
        item = await response_item(talk)
        talk.bench.clock.now += 0.3
        await talk.hear(200)
        await talk.until("input_audio_buffer.speech_started")
        for ms in (900, 200):
            await talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=ms)
            await talk.until("conversation.item.truncated")
            kept = talk.bench.session.conversation.get(item)
            assert kept is not None
            assert kept.text == text_until(ms)


async def test_an_item_that_is_still_generated_can_be_truncated() -> None:
    gate = asyncio.Semaphore(6)
    async with client(ScriptedEngine([words(TEXT, WORD_MS)], gate=gate)) as talk:
        await talk.write("go on")
        await talk.send("response.create")
        item = (await talk.until("response.output_audio.delta"))["item_id"]
        for _ in range(4):
            await talk.until("response.output_audio.delta")
        for wrong in (-1, 5 * WORD_MS + 100):
            await talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=wrong)
            assert (await talk.error())["param"] == "audio_end_ms"
        assert talk.bench.session.generating, "a refused truncation has no effect"
        await talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=300)
        response = await talk.done()
        assert response["status_details"]["reason"] == "client_cancelled"
        assert (await talk.until("conversation.item.truncated"))["audio_end_ms"] == 300
        kept = talk.bench.session.conversation.get(item)
        assert kept is not None
        assert kept.text == text_until(300)


async def test_an_old_item_is_truncated_at_the_word() -> None:
    async with client(ScriptedEngine([words(TEXT, WORD_MS)])) as talk:
        items = [await response_item(talk) for _ in range(12)]
        await talk.send("conversation.item.truncate", item_id=items[0], content_index=0, audio_end_ms=700)
        await talk.until("conversation.item.truncated")
        texts = {item.id: item.text for item in talk.bench.session.conversation}
        assert texts[items[0]] == text_until(700)
        assert all(texts[other] == TEXT for other in items[1:])
        await talk.send("conversation.item.truncate", item_id=items[0], content_index=0, audio_end_ms=900)
        assert (await talk.error())["param"] == "audio_end_ms", "what was cut off does not come back"
