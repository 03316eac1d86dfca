"""A session at rest, as plain data: what another session needs to go on as this one would have."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, fields
from typing import Any

from echosight.conversation import Conversation
from echosight.media import AudioChunk, Word
from echosight.options import GenerateOptions, SessionOptions, TurnDetectionOptions
from echosight.session.playback import PlaybackState

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """Options, conversation, playback of the latest responses, and how far the client was sent events.

    `playback` is by item id, oldest first: with it a client may still truncate or report what it plays.
    `replay_cursor` is the id of the last event that a wire sent, where the wire can replay. The user's pending turn is
    not part of it, and a response that is still generated counts as far as it was played. `to_json` and `from_json` are
    exact inverses.
    """

    options: SessionOptions
    conversation: Conversation
    playback: dict[str, PlaybackState] = field(default_factory=dict)
    replay_cursor: str | None = None

    def to_json(self) -> Json:
        """Plain JSON values; bytes as base64."""
        return {
            "options": _options_to_json(self.options),
            "conversation": self.conversation.to_json(),
            "playback": {item_id: _flat(state) | _words(state) for item_id, state in self.playback.items()},
            "replay_cursor": self.replay_cursor,
        }

    @classmethod
    def from_json(cls, data: Json) -> SessionSnapshot:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            _options_from_json(data["options"]),
            Conversation.from_json(data["conversation"]),
            {item_id: _playback_from_json(state) for item_id, state in data["playback"].items()},
            data["replay_cursor"],
        )


def _flat(value: Any) -> Json:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _words(state: PlaybackState) -> Json:
    return {"words": [[word.start_ms, word.text_end] for word in state.words]}


def _playback_from_json(data: Json) -> PlaybackState:
    return PlaybackState(**{**data, "words": tuple(Word(*word) for word in data["words"])})


def _options_to_json(options: SessionOptions) -> Json:
    sample = options.response.voice_sample
    response = _flat(options.response) | {
        "voice_sample": sample and {"pcm": base64.b64encode(sample.pcm).decode(), "rate": sample.rate},
        "tools": None if options.response.tools is None else list(options.response.tools),
    }
    detection = None if options.turn_detection is None else _flat(options.turn_detection)
    return _flat(options) | {"tools": list(options.tools), "response": response, "turn_detection": detection}


def _options_from_json(data: Json) -> SessionOptions:
    response, detection = data["response"], data["turn_detection"]
    sample, tools = response["voice_sample"], response["tools"]
    return SessionOptions(
        **{
            **data,
            "tools": tuple(data["tools"]),
            "turn_detection": None if detection is None else TurnDetectionOptions(**detection),
            "response": GenerateOptions(
                **{
                    **response,
                    "voice_sample": sample and AudioChunk(base64.b64decode(sample["pcm"]), sample["rate"]),
                    "tools": None if tools is None else tuple(tools),
                }
            ),
        }
    )
