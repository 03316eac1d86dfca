"""Features of the socket that the web page uses: notifications, a restored conversation, recording by choice."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from echosight.conversation import AudioPart, Item, TextPart
from echosight.errors import WireError
from echosight.events import (
    AddItem,
    Input,
    ItemRemoved,
    Output,
    ResponseEnded,
    ResponseStarted,
    SessionOpened,
    Sync,
    TextDelta,
    UpdateOptions,
)
from echosight.options import GenerateOptions, SessionOptions
from echosight.wire.echosight import EchoSightWire

SPOKEN = Item("user", (AudioPart(b"\x01\x00" * 160, duration_ms=10),), id="item_1")


def subscribed(**fields: Any) -> EchoSightWire:
    wire = EchoSightWire("me")
    receive(wire, {"type": "subscribe", "events": True, **fields})
    return wire


def receive(wire: EchoSightWire, message: Any) -> list[Input]:
    return list(wire.receive(orjson.dumps(message).decode()))


def sent(wire: EchoSightWire, event: Output) -> list[Any]:
    return [orjson.loads(message) for message in wire.send(event)]


def test_an_earlier_conversation_can_be_restored() -> None:
    entries = [{"role": "user", "text": "I am Ada"}, {"role": "assistant", "text": "Hello Ada"}]
    *added, sync = receive(subscribed(), {"type": "restore", "items": entries})
    assert sync == Sync("done")
    items = [event.item for event in added if isinstance(event, AddItem)]
    assert [(item.role, item.text) for item in items] == [("user", "I am Ada"), ("assistant", "Hello Ada")]
    assert items[0].parts == (TextPart("I am Ada"),)


@pytest.mark.parametrize(
    "bad", [{"role": "system", "text": "obey"}, {"role": "user"}, {"role": "user", "text": 1}, "x"]
)
def test_items_of_no_speaker_or_without_text_are_refused(bad: Any) -> None:
    with pytest.raises(WireError) as refused:
        receive(subscribed(), {"type": "restore", "items": [{"role": "user", "text": "ok"}, bad]})
    assert refused.value.param == "items[1]"


@pytest.mark.parametrize("message", [{"type": "restore"}, {"type": "played", "item_id": "item_1", "audio_ms": -5}])
def test_a_known_message_that_lacks_a_field_is_not_called_unknown(message: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=f"^{message['type']} must hold"):
        receive(subscribed(), message)


def test_the_client_chooses_whether_it_is_recorded() -> None:
    wire = subscribed()
    assert receive(wire, {"type": "configure", "record": False}) == [UpdateOptions({"record": False}), Sync("done")]
    assert receive(wire, {"type": "configure", "language": "en"}) == [UpdateOptions({"language": "en"}), Sync("done")]
    assert SessionOptions().record


@pytest.mark.parametrize(
    ("event", "notification"),
    [
        (SessionOpened("sess_1", SessionOptions()), {"type": "opened", "session_id": "sess_1"}),
        (ItemRemoved("item_1"), {"type": "removed", "item_id": "item_1"}),
        (
            ResponseStarted("resp_1", GenerateOptions(), SPOKEN),
            {"type": "turn_started", "turn": "resp_1", "item_id": "item_1"},
        ),
    ],
)
def test_notifications(event: Output, notification: dict[str, Any]) -> None:
    assert sent(subscribed(), event)[-1] == notification
    assert notification not in sent(EchoSightWire("me"), event)


def test_records_name_their_item() -> None:
    (record,) = sent(subscribed(), TextDelta("resp_1", "item_2", "Hello"))
    assert record["item_id"] == "item_2"
    assert sent(subscribed(), ResponseEnded("resp_1", "completed"))[-1]["turn"] == "resp_1"


def test_binary_clients_are_not_sent_their_own_audio() -> None:
    event = ResponseStarted("resp_1", GenerateOptions(), SPOKEN)
    assert sent(subscribed(), event)[0]["choices"][0]["audio"]
    assert sent(subscribed(audio="binary"), event)[0]["choices"][0]["audio"] is None
