"""Turn-taking: the core with real turn detection, and an engine that follows a script."""

from __future__ import annotations

import asyncio

import pytest

from echosight.conversation import AudioPart, Conversation, ImagePart, Item, TextPart, UserTurn
from echosight.engines import GenerationSummary, TextChunk, ToolCallChunk
from echosight.errors import EngineFailure, InputError
from echosight.events import (
    AddItem,
    Cancel,
    ClearInput,
    CommitInput,
    CreateResponse,
    Image,
    InputCommitted,
    ItemDone,
    ItemRetrieved,
    ItemTruncated,
    Output,
    PlaybackProgress,
    RemoveItem,
    Reset,
    ResponseEnded,
    ResponseStarted,
    RetrieveItem,
    SpeechDelta,
    SpeechStarted,
    SpeechStopped,
    Sync,
    Synced,
    Text,
    TextDelta,
    TranscriptionFailed,
    TranscriptUpdated,
    Truncate,
    UpdateOptions,
)
from echosight.media import ImageFrame, Transcript
from echosight.options import TurnDetectionOptions
from tests.fakes import ScriptedEngine, words
from tests.rig import bench, chunks_of, loud, quiet

LONG = "one two three four five six seven eight nine ten"
FRAME = ImageFrame(b"picture", "image/jpeg", 4, 4)
BY_HAND = {"turn_detection": None}


async def test_a_spoken_turn_gets_a_response() -> None:
    async with bench() as b:
        await b.feed(quiet(320), loud(640), quiet(640))
        ended = await b.turn()
        assert ended.outcome == "completed"
        assert [n for n in b.names if n not in ("TranscriptUpdated", "SpeechDelta")] == [
            "SessionOpened",
            "SpeechStarted",
            "SpeechStopped",
            "InputCommitted",
            "ItemAdded",
            "ItemDone",
            "ResponseStarted",
            "ItemAdded",
            "TextDelta",
            "ItemDone",
            "ResponseEnded",
        ]
        user, assistant = b.session.conversation.items
        assert (user.role, user.text) == ("user", "what was said")
        assert (assistant.role, assistant.text, assistant.status) == ("assistant", "hello there", "completed")


async def test_the_turn_holds_pre_roll_speech_and_the_pause_but_no_more_silence() -> None:
    async with bench() as b:
        await b.feed(quiet(640), loud(640), quiet(640))
        await b.turn()
        started, stopped = b.of(SpeechStarted)[0], b.of(SpeechStopped)[0]
        assert started.at == (640 - 300) * 16
        assert stopped.at == (640 + 640) * 16
        audio = b.session.conversation.items[0].audio
        assert audio is not None
        assert audio.duration_ms == 300 + 640 + 160
        prefilled = b"".join(p.pcm or b"" for p in b.engine.prefilled if isinstance(p, AudioPart))
        assert prefilled == audio.pcm


async def test_the_transcript_is_finished_in_the_pause_and_redone_if_speech_goes_on() -> None:
    async with bench() as b:
        await b.feed(loud(320), quiet(256), loud(320), quiet(640))
        await b.turn()
        assert len(b.engine.transcribed_ms) == 2, "once in each pause, and not again at the end"
        audio = b.session.conversation.items[0].audio
        assert audio is not None
        assert audio.duration_ms == b.engine.transcribed_ms[-1] == 320 + 256 + 320 + 160


@pytest.mark.parametrize("ms", [1, 7, 20, 32, 100, 10_000])
async def test_the_size_of_audio_chunks_changes_nothing(ms: int) -> None:
    async def log(size: int) -> list[Output]:
        async with bench() as b:
            for part in (quiet(96), loud(500), quiet(700)):
                for piece in chunks_of(part, size):
                    await b.feed(piece)
            await b.turn()
            audio = b.session.conversation.items[0].audio
            assert audio is not None
            return [*(e.at for e in b.of(SpeechStarted)), *(e.at for e in b.of(SpeechStopped)), audio.pcm]  # type: ignore[list-item]

    assert await log(ms) == await log(32)


async def test_speech_over_the_response_stops_the_model_and_keeps_what_was_played() -> None:
    engine = ScriptedEngine([words(LONG)], gate=asyncio.Semaphore(0))
    async with bench(engine) as b:
        await b.feed(loud(320), quiet(640))
        await b.until(ResponseStarted)
        assert engine.gate is not None
        for _ in range(6):  # the text and five words
            engine.gate.release()
        for _ in range(5):
            await b.until(SpeechDelta)
        b.clock.now += 0.25
        steps = engine.steps
        await b.feed(loud(320))
        ended = await b.turn()
        assert (ended.outcome, ended.reason) == ("cancelled", "turn_detected")
        assert engine.steps == steps, "the model went on"
        assert engine.stopped == 1
        item = b.session.conversation.items[1]
        assert (item.text, item.status) == ("one two three", "incomplete")
        assert b.of(ItemDone)[-1].item == item
        for _ in range(20):
            engine.gate.release()
        await b.feed(quiet(640))
        await b.turn()
        assert [i.text for i in engine.conversations[1].items] == ["what was said", "one two three", "what was said"]


async def test_speech_over_a_complete_response_that_still_plays_cuts_it() -> None:
    async with bench(ScriptedEngine([words(LONG)])) as b:
        await b.feed(loud(320), quiet(640))
        assert (await b.turn()).outcome == "completed"
        b.clock.now += 0.41
        await b.feed(loud(320))
        cut = await b.until(ItemTruncated)
        assert (cut.text, cut.requested) == ("one two three four five", False)
        assert b.session.conversation.items[1].text == cut.text


async def test_a_response_that_was_played_to_its_end_stays_whole() -> None:
    async with bench(ScriptedEngine([words(LONG)])) as b:
        await b.feed(loud(320), quiet(640))
        await b.turn()
        b.clock.now += 1.5
        await b.feed(loud(320), quiet(640))
        await b.turn()
        assert b.session.conversation.items[1].text == LONG
        assert not b.of(ItemTruncated)


async def test_what_the_client_reports_as_played_counts() -> None:
    async with bench(ScriptedEngine([words(LONG)])) as b:
        await b.feed(loud(320), quiet(640))
        await b.turn()
        b.clock.now += 30
        await b.feed(PlaybackProgress(b.session.conversation.items[1].id, 120), loud(320))
        assert (await b.until(ItemTruncated)).text == "one two"


async def test_without_interrupt_response_the_next_turn_waits_for_the_response() -> None:
    engine = ScriptedEngine([words("first answer"), words("second answer")], gate=asyncio.Semaphore(0))
    async with bench(engine, turn_detection=TurnDetectionOptions(interrupt_response=False)) as b:
        await b.feed(loud(320), quiet(640))
        await b.until(ResponseStarted)
        heard = len(engine.prefilled)
        await b.feed(loud(320), quiet(640))
        assert len(engine.prefilled) == heard, "two writers in one cache"
        assert engine.gate is not None
        for _ in range(10):
            engine.gate.release()
        ends = [await b.turn(), await b.turn()]
        assert [e.outcome for e in ends] == ["completed", "completed"]
        assert [i.text for i in engine.conversations[1].items][-1] == "what was said"


async def test_a_second_request_is_refused_or_interrupts_the_first() -> None:
    async with bench(ScriptedEngine([words(LONG)], gate=asyncio.Semaphore(0))) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        with pytest.raises(InputError) as refused:
            await b.feed(CreateResponse())
        assert refused.value.code == "conversation_already_has_active_response"
        await b.feed(CreateResponse(interrupt=True))
        assert (await b.turn()).reason == "client_cancelled"


async def test_cancelling_when_no_response_is_active() -> None:
    async with bench() as b:
        await b.feed(Cancel())
        with pytest.raises(InputError) as refused:
            await b.feed(Cancel(strict=True))
        assert refused.value.code == "response_cancel_not_active"


async def test_an_engine_that_fails_ends_its_response_and_no_more() -> None:
    engine = ScriptedEngine([[TextChunk("so far"), EngineFailure("the worker died")], words("again")])
    async with bench(engine) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        ended = await b.turn()
        assert (ended.outcome, ended.reason, ended.error) == ("failed", "engine_failed", "the worker died")
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        assert (await b.turn()).outcome == "completed"


@pytest.mark.filterwarnings("ignore")
async def test_an_unexpected_exception_of_an_engine_is_hidden_from_the_client() -> None:
    async with bench(ScriptedEngine([[RuntimeError("secret")]])) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        ended = await b.turn()
        assert (ended.outcome, ended.error) == ("failed", "The engine failed")


async def test_speech_that_cannot_be_transcribed_fails_the_response_with_a_reason() -> None:
    async with bench(ScriptedEngine(transcripts=[EngineFailure("no ears"), "heard again"])) as b:
        await b.feed(loud(320), quiet(640))
        assert (await b.turn()).error == "no ears"
        assert b.of(TranscriptionFailed)[0].message == "no ears"
        await b.feed(loud(320), quiet(640))
        assert (await b.turn()).outcome == "completed"


async def test_an_interrupted_turn_still_gets_its_transcript() -> None:
    async with bench(ScriptedEngine([words(LONG)], transcripts=["first", "second"])) as b:
        await b.feed(loud(320), quiet(640), loud(320), quiet(640))
        await b.turn()
        await b.turn()
        assert [h.transcript.text for h in b.of(TranscriptUpdated) if h.transcript.final] == ["first", "second"]


async def test_transcripts_come_in_the_order_of_the_turns() -> None:
    class Slow(ScriptedEngine):
        async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
            transcript = await super().finalize_transcript(conversation, turn)
            for _ in range(100 if len(self.transcribed_ms) == 1 else 0):
                await asyncio.sleep(0)
            return transcript

    async with bench(Slow(transcripts=["first", "second"]), **BY_HAND) as b:
        await b.feed(loud(200), CommitInput(), loud(200), CommitInput(), CreateResponse())
        await b.turn()
        assert [h.transcript.text for h in b.of(TranscriptUpdated) if h.transcript.final] == ["first", "second"]


async def test_a_speculative_transcript_belongs_to_its_own_turn() -> None:
    async with bench(ScriptedEngine(transcripts=["spoken", "added"])) as b:
        await b.feed(loud(320), quiet(256))
        await b.feed(AddItem(Item("user", (AudioPart(b"\1\1" * 16_000, duration_ms=1000),), "mine")))
        await b.feed(quiet(640))
        await b.turn()
        assert sorted(i.text for i in b.session.conversation.items if i.role == "user") == ["added", "spoken"]
        assert b.session.conversation.items[0].text == "added"


async def test_turns_committed_by_the_client() -> None:
    async with bench(**BY_HAND) as b:
        await b.feed(loud(200), quiet(2000), CommitInput())
        await b.until(InputCommitted)
        assert b.engine.conversations == []
        await b.feed(CreateResponse())
        await b.turn()
        audio = b.session.conversation.items[0].audio
        assert audio is not None
        assert audio.duration_ms == 2200
        assert not b.of(SpeechStarted)


async def test_a_commit_of_too_little_audio_is_refused_and_loses_nothing() -> None:
    async with bench(**BY_HAND) as b:
        await b.feed(loud(50))
        with pytest.raises(InputError) as refused:
            await b.feed(CommitInput(min_audio_ms=100))
        assert refused.value.code == "input_audio_buffer_commit_empty"
        assert "only has 50.00ms" in refused.value.message
        await b.feed(loud(50), CommitInput(min_audio_ms=100))


async def test_a_turn_without_commit_has_a_longest_duration() -> None:
    async with bench(**BY_HAND) as b:
        await b.feed(quiet(599_000), loud(1_000))
        with pytest.raises(InputError) as refused:
            await b.feed(loud(1))
        assert refused.value.code == "input_audio_buffer_too_long"
        await b.feed(CommitInput(), loud(1))


async def test_clearing_drops_the_turn_in_progress() -> None:
    async with bench(**BY_HAND) as b:
        await b.feed(loud(500), ClearInput())
        with pytest.raises(InputError):
            await b.feed(CommitInput())


async def test_images_belong_to_the_turn_they_came_with() -> None:
    async with bench() as b:
        await b.feed(Image(ImageFrame(b"old", "image/jpeg", 4, 4)), Image(FRAME), loud(320), Image(FRAME), quiet(640))
        await b.turn()
        images = b.session.conversation.items[0].images
        assert images == (FRAME, FRAME), "of those before the turn only the newest"
        await b.feed(loud(320), quiet(640))
        await b.turn()
        assert b.session.conversation.items[2].images == ()


async def test_hd_video_asks_for_detail() -> None:
    async with bench(hd_video=True, **BY_HAND) as b:
        await b.feed(Image(FRAME), CommitInput(), CreateResponse())
        await b.turn()
        assert [p.detail for p in b.session.conversation.items[0].parts_of(ImagePart)] == ["high"]


async def test_pacing_holds_speech_back_to_its_lead() -> None:
    engine = ScriptedEngine([words(LONG)])
    async with bench(engine) as b:
        changes = UpdateOptions({"turn_detection": None, "response": {"max_playout_lead_ms": 200}})
        await b.feed(changes, Text("hi"), CommitInput(), CreateResponse())
        for _ in range(3):
            await b.until(SpeechDelta)
        assert len(b.session.outbox) == 0
        assert engine.steps < 8, "the model ran ahead of the player"
        assert await b.session.stop()
        assert (await b.turn()).outcome == "cancelled"


async def test_a_function_call_is_an_item_of_its_own() -> None:
    calls = [ToolCallChunk("c1", "look", '{"at":'), ToolCallChunk("c1", "look", '"it"}')]
    async with bench(ScriptedEngine([calls])) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        ended = await b.turn()
        (call,) = ended.items[0].parts
        assert (call.name, call.arguments) == ("look", '{"at":"it"}')  # type: ignore[union-attr]


async def test_a_token_limit_makes_the_response_incomplete() -> None:
    async with bench(ScriptedEngine([[TextChunk("half a"), GenerationSummary(finish="length")]])) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        ended = await b.turn()
        assert (ended.outcome, ended.reason) == ("incomplete", "max_output_tokens")
        assert b.session.conversation.items[1].text == "half a"


async def test_a_response_out_of_band_leaves_no_trace() -> None:
    async with bench() as b:
        question = Item("user", (TextPart("aside"),))
        await b.feed(CreateResponse(conversation=False, input=(question,), metadata={"topic": "x"}))
        started = await b.until(ResponseStarted)
        assert started.metadata == {"topic": "x"}
        await b.turn()
        assert b.session.conversation.items == []
        assert b.engine.conversations[0].items == [question]
        assert b.engine.released == [b.engine.conversations[0].id]


async def test_items_added_and_deleted_by_the_client() -> None:
    async with bench() as b:
        item = Item("user", (TextPart("hello"),), "mine")
        await b.feed(AddItem(item), RetrieveItem("mine"))
        assert (await b.until(ItemRetrieved)).item == item
        for wrong in (
            AddItem(item),
            AddItem(Item("user", ()), "nobody"),
            RemoveItem("x"),
            RetrieveItem("x"),
            Truncate("x", 0),
        ):
            with pytest.raises(InputError):
                await b.feed(wrong)
        await b.feed(RemoveItem("mine"))
        assert b.session.conversation.items == []


async def test_speech_in_an_added_item_is_transcribed_before_the_response() -> None:
    async with bench() as b:
        await b.feed(AddItem(Item("user", (AudioPart(b"\1\1" * 16_000, duration_ms=1000),))), CreateResponse())
        await b.turn()
        assert b.engine.conversations[0].items[0].text == "what was said"


@pytest.mark.parametrize("ms", range(0, 1000, 100))
async def test_truncation_keeps_no_word_that_had_not_begun(ms: int) -> None:
    async with bench(ScriptedEngine([words(LONG)])) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        await b.turn()
        item = b.session.conversation.items[1]
        await b.feed(Truncate(item.id, ms))
        cut = await b.until(ItemTruncated)
        assert cut.text == " ".join(LONG.split()[: ms // 100])
        await b.feed(Truncate(item.id, 1000))
        assert (await b.until(ItemTruncated)).text == LONG, "the client knows better than the first guess"
        with pytest.raises(InputError):
            await b.feed(Truncate(item.id, 1500))


async def test_syncs_come_back_in_order_and_know_whether_a_response_is_generated() -> None:
    async with bench(ScriptedEngine(gate=asyncio.Semaphore(0))) as b:
        await b.feed(Sync("before"), Text("hi"), CommitInput(), CreateResponse(), Sync("after"))
        await b.until(Synced)
        await b.until(Synced)
        assert [(m.tag, m.generating) for m in b.of(Synced)] == [("before", False), ("after", True)]


async def test_reset_deletes_the_conversation() -> None:
    async with bench() as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        await b.turn()
        await b.feed(Reset())
        assert b.session.conversation.items == []
        assert b.engine.released == [b.session.conversation.id]


async def test_reset_cancels_pending_transcriptions() -> None:
    """The engine releases the speech: a transcription that waits for it would not end, and no response would start."""

    class ReleasedWhileTranscribing(ScriptedEngine):
        async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
            if not self.released:
                await asyncio.Event().wait()
            return await super().finalize_transcript(conversation, turn)

    async with bench(ReleasedWhileTranscribing(), **BY_HAND) as b:
        await b.feed(loud(320), CommitInput())
        await asyncio.sleep(0)
        await b.feed(Reset(), Text("hi"), CommitInput(), CreateResponse())
        ended = await b.turn()
        assert ended.outcome == "completed"
        assert [type(item) for item in b.session.conversation.items] == [Item, Item]


async def test_closing_ends_everything() -> None:
    engine = ScriptedEngine([words(LONG)], gate=asyncio.Semaphore(0))
    async with bench(engine) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        await b.until(ResponseStarted)
        await asyncio.sleep(0)
    assert engine.released == [b.session.conversation.id]
    assert b.session.closed
    rest = [event async for event in b.session.events()]
    assert [e.outcome for e in rest if isinstance(e, ResponseEnded)] == ["cancelled"]
    assert not [e for e in rest if isinstance(e, TextDelta)]


async def test_the_waterfall_comes_with_the_end_of_the_response() -> None:
    async with bench() as b:
        await b.feed(loud(320))
        b.clock.now += 0.4
        await b.feed(quiet(640))
        ended = await b.turn()
        assert ended.waterfall.endpoint == pytest.approx(400)
        assert None not in (
            ended.waterfall.transcript,
            ended.waterfall.first_text,
            ended.waterfall.first_audio,
            ended.waterfall.first_byte,
        )
        assert ended.providers == ("fake",)


async def test_an_item_id_may_be_reused_while_its_speech_is_transcribed() -> None:
    class Pair(ScriptedEngine):
        """As a transcriber with an utterance of each name: who asks for it twice at once waits for ever."""

        def __init__(self) -> None:
            super().__init__()
            self.hearing: set[str] = set()

        async def finalize_transcript(self, conversation: Conversation, turn: UserTurn) -> Transcript | None:
            assert turn.id not in self.hearing
            self.hearing.add(turn.id)
            try:
                for _ in range(10):
                    await asyncio.sleep(0)
            finally:
                self.hearing.discard(turn.id)
            return Transcript(f"{turn.duration_ms} ms")

    async with bench(Pair()) as b:
        for ms in (100, 200, 300):
            await b.feed(AddItem(Item("user", (AudioPart(loud(ms).chunk.pcm, 16_000, ms),), id="again")))
            await asyncio.sleep(0)
            if ms < 300:
                await b.feed(RemoveItem("again"))
            if ms == 100:
                await b.feed(CreateResponse())
        await b.turn()
        await b.feed(CreateResponse())
        await b.turn()
        assert [item.text for item in b.session.conversation if item.role == "user"] == ["300 ms"]
        assert [heard.transcript.text for heard in b.of(TranscriptUpdated)] == ["300 ms"]


async def test_the_id_of_the_pending_turn_is_taken() -> None:
    async with bench() as b:
        await b.feed(loud(320))
        begun = await b.until(SpeechStarted)
        with pytest.raises(InputError, match="already exists"):
            await b.feed(AddItem(Item("user", (TextPart("me too"),), id=begun.item_id)))
        await b.feed(quiet(640))
        assert (await b.until(InputCommitted)).item_id == begun.item_id


async def test_a_player_in_the_server_reports_what_was_played() -> None:
    async with bench(ScriptedEngine([words("one two three")])) as b:
        await b.feed(Text("hi"), CommitInput(), CreateResponse())
        (item,) = (await b.turn()).items
        b.clock.now += 10
        b.session.report_played(item.id, 110.0)
        await b.feed(loud(320))
        cut = await b.until(ItemTruncated)
        assert (cut.audio_ms, cut.text) == (110, "one two")
