"""The two state machines of a session, and their transition tables.

A session is two machines side by side. Everything that the session does hangs on a transition of one of them.

**The user's input.** The VAD's signals move it; a client that commits its turns by hand leaves it at LISTENING.

    LISTENING ──START──▶ SPEAKING ──PAUSE──▶ PAUSED
                         SPEAKING ◀─RESUME── PAUSED
    LISTENING ◀──END──── SPEAKING, PAUSED
    LISTENING ◀──────── every state, when the client commits or clears the turn, or switches turn detection off

In PAUSED the turn may be over: audio is held back, and the transcript is finished speculatively.

**A response**, from the request for it to its last sample in the user's ear.

    QUEUED ──START──▶ WAITING ──GENERATE──▶ GENERATING ──COMPLETE──▶ DRAINING
    ENDED ◀──END── every other state: cancelled, failed, or cut while it was still playing

    QUEUED      another response is still generated; this one follows it
    WAITING     announced to the client; waits for transcripts and for a slot of the engine
    GENERATING  the engine yields chunks
    DRAINING    complete; the client may still have speech of it to play

Three rules follow from the table and hold for every order of inputs:

1. A response is announced once, by START, and its end is announced once, by COMPLETE or by END.
2. A conversation has at most one response that is WAITING or GENERATING, so an engine's cache has one writer: while
   there is one, the user's audio is held back from `prefill`.
3. Responses out of band are the same machine without the line that speech interrupts: they run next to the
   conversation's own, each on a copy of the conversation.

An event that the table does not know in a state raises `IllegalTransition`: it is a defect of the session, never of the
client, whose inputs are refused before they get here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Generic, TypeVar

from echosight.turns.detector import VadSignal


class IllegalTransition(RuntimeError):
    """The session asked for a step that its state does not allow: a defect."""


class InputState(Enum):
    """Where the user's input stands."""

    LISTENING = auto()
    SPEAKING = auto()
    PAUSED = auto()


class ResponseState(Enum):
    """Where a response stands."""

    QUEUED = auto()
    WAITING = auto()
    GENERATING = auto()
    DRAINING = auto()
    ENDED = auto()


class ResponseStep(Enum):
    """What happens to a response."""

    START = auto()
    GENERATE = auto()
    COMPLETE = auto()
    END = auto()


INPUT_TABLE: Mapping[tuple[InputState, VadSignal], InputState] = {
    (InputState.LISTENING, VadSignal.START): InputState.SPEAKING,
    (InputState.SPEAKING, VadSignal.PAUSE): InputState.PAUSED,
    (InputState.PAUSED, VadSignal.RESUME): InputState.SPEAKING,
    (InputState.SPEAKING, VadSignal.END): InputState.LISTENING,
    (InputState.PAUSED, VadSignal.END): InputState.LISTENING,
}
RESPONSE_TABLE: Mapping[tuple[ResponseState, ResponseStep], ResponseState] = {
    (ResponseState.QUEUED, ResponseStep.START): ResponseState.WAITING,
    (ResponseState.WAITING, ResponseStep.GENERATE): ResponseState.GENERATING,
    (ResponseState.GENERATING, ResponseStep.COMPLETE): ResponseState.DRAINING,
    (ResponseState.QUEUED, ResponseStep.END): ResponseState.ENDED,
    (ResponseState.WAITING, ResponseStep.END): ResponseState.ENDED,
    (ResponseState.GENERATING, ResponseStep.END): ResponseState.ENDED,
    (ResponseState.DRAINING, ResponseStep.END): ResponseState.ENDED,
}

State = TypeVar("State", bound=Enum)
Step = TypeVar("Step", bound=Enum)


class Machine(Generic[State, Step]):
    """A state that changes only as its table says."""

    def __init__(self, table: Mapping[tuple[State, Step], State], initial: State) -> None:
        self._table = table
        self._initial = initial
        self.state = initial

    def advance(self, step: Step) -> None:
        """Take a step. Raises `IllegalTransition` where the table has none for it."""
        after = self._table.get((self.state, step))
        if after is None:
            raise IllegalTransition(f"{step.name} is not allowed in {self.state.name}")
        self.state = after

    def reset(self) -> None:
        """Go back to the initial state."""
        self.state = self._initial


def input_machine() -> Machine[InputState, VadSignal]:
    return Machine(INPUT_TABLE, InputState.LISTENING)


def response_machine() -> ResponseMachine:
    return Machine(RESPONSE_TABLE, ResponseState.QUEUED)


ResponseMachine = Machine[ResponseState, ResponseStep]


class ConversationActivity:
    """Whether the engine generates on the conversation: what the user's input has to know of the responses."""

    def __init__(self) -> None:
        self.current: Machine[ResponseState, ResponseStep] | None = None
        """The machine of the conversation's latest response that was started."""

    @property
    def generating(self) -> bool:
        """Whether a response is WAITING or GENERATING."""
        current = self.current
        return current is not None and current.state in (ResponseState.WAITING, ResponseState.GENERATING)
