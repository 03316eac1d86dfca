"""What a model says about one frame: the instructions that ask for it, and the JSON that it must answer with."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

__all__ = ["REPLY_SCHEMA", "FrameDescription", "InvalidReply", "instructions", "read_reply", "repair_request"]

MAX_FAULT_CHARS = 300

Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class FrameDescription(BaseModel):
    """A model's reply about a frame. Other fields that it writes are dropped."""

    model_config = ConfigDict(extra="ignore", strict=True)

    description: Sentence
    risks: list[Sentence]
    suggestions: list[Sentence]


REPLY_SCHEMA: dict[str, Any] = {**FrameDescription.model_json_schema(), "additionalProperties": False}

FORMAT = (
    "Answer with one JSON object and nothing else: "
    '{"description": "…", "risks": ["…"], "suggestions": ["…"]}. '
    "A list stays empty where the picture gives no reason for an entry."
)


class InvalidReply(ValueError):
    """The reply is not a `FrameDescription`; the message says why, for the model."""


def instructions(prompt: str, language: str | None) -> str:
    """The system message: the prompt, the language (a BCP 47 tag) of all texts, and the form of the reply."""
    spoken = f"Write every text in the language with the BCP 47 tag {language}; the names of the fields stay English."
    return "\n".join([prompt, *([spoken] if language else []), FORMAT])


def read_reply(text: str) -> FrameDescription:
    """The description in a model's reply; thoughts, code fences and sentences around the object do not matter.

    Raises `InvalidReply`.
    """
    answer = text.rpartition("</think>")[2]
    start = answer.find("{")
    if start < 0:
        raise InvalidReply("there is no JSON object in it")
    try:
        value, _ = json.JSONDecoder().raw_decode(answer, start)
        return FrameDescription.model_validate(value)
    except json.JSONDecodeError as error:
        raise InvalidReply(f"its JSON is broken: {error.msg}") from error
    except RecursionError as error:
        raise InvalidReply("its JSON is nested too deeply") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        path = ".".join(map(str, first["loc"]))
        raise InvalidReply(f"{path}: {first['msg']}"[:MAX_FAULT_CHARS]) from error


def repair_request(fault: InvalidReply) -> str:
    """What the model reads after a reply that was not valid."""
    return f"That answer cannot be used: {fault}. {FORMAT}"
