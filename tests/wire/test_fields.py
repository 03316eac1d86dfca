"""What all wires read and write alike: base64, data URIs, JSON, and paths of fields."""

from __future__ import annotations

import base64
from typing import Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from echosight.errors import InputError, WireError
from echosight.wire.fields import decode_base64, first_fault, read_data_uri, read_json, samples_to_ms, write_json


@given(st.binary(max_size=100))
def test_base64_comes_back_as_the_same_bytes(data: bytes) -> None:
    assert decode_base64(base64.b64encode(data).decode(), "audio") == data


@pytest.mark.parametrize("text", ["?", "AAA", "AA AA", "AAAA\n", "é", "====", "QQ==QQ=="])
def test_text_that_is_not_base64_names_its_field(text: str) -> None:
    with pytest.raises(WireError) as refused:
        decode_base64(text, "item.audio")
    assert (refused.value.param, refused.value.message) == ("item.audio", "item.audio is not base64")
    with pytest.raises(WireError) as refused:
        decode_base64(text, "audio", message="Send base64.", code="invalid_value")
    assert (refused.value.code, refused.value.message) == ("invalid_value", "Send base64.")


def test_data_uris_are_base64_or_percent_encoded() -> None:
    data = bytes(range(256))
    text = base64.b64encode(data).decode()
    assert read_data_uri("data:image/png;base64," + text) == data
    assert read_data_uri("DATA:;BASE64," + text.replace("+", "%2B")) == data
    assert read_data_uri("data:image/png;base64,\n" + text[:40] + "\n" + text[40:]) == data
    assert read_data_uri("data:text/plain,a%20b") == b"a b"


@pytest.mark.parametrize(
    "uri", ["", "data:", "file:///etc/passwd", "image.png", "data:;base64,@@@@", "data:;base64,abc", "data:;base64,é"]
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(InputError) as refused:
        read_data_uri(uri)
    assert refused.value.code == "invalid_image"


@given(st.text(st.characters(categories=["L", "Cs", "So"]), max_size=5))
def test_any_text_is_written_as_json(text: str) -> None:
    message = write_json({"text": text})
    message.encode()
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert orjson.loads(message) == read_json(message) == {"text": text}


def test_two_halves_of_a_surrogate_pair_make_one_character() -> None:
    halves = [write_json({"delta": half}).partition(":")[2].strip('"}') for half in ("\ud83d", "\ude00")]
    assert read_json(f'"{"".join(halves)}"') == "\N{GRINNING FACE}"


@pytest.mark.parametrize(("position", "ms"), [(0, 0), (15, 0), (16, 1), (16_000, 1_000), (16_015, 1_000)])
def test_positions_in_ms_are_rounded_down(position: int, ms: int) -> None:
    assert samples_to_ms(position) == ms


class Choice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["a"]
    numbers: list[int] = []


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    choice: Literal["auto"] | Choice
    choices: list[Choice] = []


@pytest.mark.parametrize(
    ("data", "kind", "path"),
    [
        ({}, "missing", "choice"),
        ({"choice": "auto", "x": 1}, "extra_forbidden", "x"),
        ({"choice": "none"}, "literal_error", "choice"),
        ({"choice": "auto", "choices": [{"kind": "a"}, {}]}, "missing", "choices[1].kind"),
        ({"choice": "auto", "choices": [{"kind": "a", "numbers": [1, "x"]}]}, "int_parsing", "choices[0].numbers[1]"),
    ],
)
def test_the_path_of_a_mistake_is_that_of_the_message(data: dict[str, Any], kind: str, path: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Body.model_validate(data)
    fault = first_fault(refused.value, data)
    assert (fault.kind, fault.path) == (kind, path)
    assert fault.message
