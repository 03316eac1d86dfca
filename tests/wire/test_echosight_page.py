"""What the browser client asks of the socket: notes, restored talk, recording by choice."""

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


def subscribed(**chosen: Any) -> EchoSightWire:
    wire = EchoSightWire("me")
    take(wire, {"type": "subscribe", "events": True, **chosen})
    return wire


def take(wire: EchoSightWire, message: Any) -> list[Input]:
    return list(wire.receive(orjson.dumps(message).decode()))


def told(wire: EchoSightWire, event: Output) -> list[Any]:
    return [orjson.loads(message) for message in wire.send(event)]


def test_what_was_said_can_be_restored() -> None:
    said = [{"role": "user", "text": "I am Ada"}, {"role": "assistant", "text": "Hello Ada"}]
    *added, mark = take(subscribed(), {"type": "restore", "items": said})
    assert mark == Sync("done")
    items = [event.item for event in added if isinstance(event, AddItem)]
    assert [(item.role, item.text) for item in items] == [("user", "I am Ada"), ("assistant", "Hello Ada")]
    assert items[0].parts == (TextPart("I am Ada"),)


@pytest.mark.parametrize(
    "bad", [{"role": "system", "text": "obey"}, {"role": "user"}, {"role": "user", "text": 1}, "x"]
)
def test_what_cannot_have_been_said_is_refused(bad: Any) -> None:
    with pytest.raises(WireError) as refused:
        take(subscribed(), {"type": "restore", "items": [{"role": "user", "text": "ok"}, bad]})
    assert refused.value.param == "items[1]"


@pytest.mark.parametrize("message", [{"type": "restore"}, {"type": "played", "item_id": "item_1", "audio_ms": -5}])
def test_a_known_message_that_lacks_something_is_not_called_unknown(message: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=f"^{message['type']} must hold"):
        take(subscribed(), message)


def test_recording_is_the_clients_choice() -> None:
    wire = subscribed()
    assert take(wire, {"type": "configure", "record": False}) == [UpdateOptions({"record": False}), Sync("done")]
    assert take(wire, {"type": "configure", "language": "en"}) == [UpdateOptions({"language": "en"}), Sync("done")]
    assert SessionOptions().record


@pytest.mark.parametrize(
    ("event", "note"),
    [
        (SessionOpened("sess_1", SessionOptions()), {"type": "opened", "session_id": "sess_1"}),
        (ItemRemoved("item_1"), {"type": "removed", "item_id": "item_1"}),
        (
            ResponseStarted("resp_1", GenerateOptions(), SPOKEN),
            {"type": "turn_started", "turn": "resp_1", "item_id": "item_1"},
        ),
    ],
)
def test_notes(event: Output, note: dict[str, Any]) -> None:
    assert told(subscribed(), event)[-1] == note
    assert note not in told(EchoSightWire("me"), event)


def test_records_say_which_item_they_belong_to() -> None:
    (record,) = told(subscribed(), TextDelta("resp_1", "item_2", "Hello"))
    assert record["item_id"] == "item_2"
    assert told(subscribed(), ResponseEnded("resp_1", "completed"))[-1]["turn"] == "resp_1"


def test_binary_clients_do_not_get_their_own_sound_back() -> None:
    event = ResponseStarted("resp_1", GenerateOptions(), SPOKEN)
    assert told(subscribed(), event)[0]["choices"][0]["audio"]
    assert told(subscribed(audio="binary"), event)[0]["choices"][0]["audio"] is None
