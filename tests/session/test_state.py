"""The transition tables are what the module's text says, and a step out of order raises."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from echosight.session.state import (
    INPUT_TABLE,
    RESPONSE_TABLE,
    IllegalTransition,
    InputState,
    Machine,
    ResponseState,
    ResponseStep,
    input_machine,
    response_machine,
)
from echosight.turns.detector import VadSignal


def walk(machine: Machine[Any, Any], *steps: Enum) -> Any:
    for step in steps:
        machine.advance(step)
    return machine.state


def test_a_turn_with_a_pause() -> None:
    start, pause, resume, end = VadSignal.START, VadSignal.PAUSE, VadSignal.RESUME, VadSignal.END
    assert walk(input_machine(), start, pause, resume) is InputState.SPEAKING
    assert walk(input_machine(), start, pause, end, start, end) is InputState.LISTENING


def test_a_response_from_the_request_to_its_last_sample() -> None:
    steps = ResponseStep.START, ResponseStep.GENERATE, ResponseStep.COMPLETE
    assert walk(response_machine(), *steps) is ResponseState.DRAINING
    assert walk(response_machine(), *steps, ResponseStep.END) is ResponseState.ENDED


@pytest.mark.parametrize("state", InputState)
@pytest.mark.parametrize("step", VadSignal)
def test_signals_out_of_order_raise(state: InputState, step: VadSignal) -> None:
    check(Machine(INPUT_TABLE, state), step, (state, step) in INPUT_TABLE)


@pytest.mark.parametrize("state", ResponseState)
@pytest.mark.parametrize("step", ResponseStep)
def test_steps_out_of_order_raise(state: ResponseState, step: ResponseStep) -> None:
    check(Machine(RESPONSE_TABLE, state), step, (state, step) in RESPONSE_TABLE)


def check(machine: Machine[Any, Any], step: Enum, legal: bool) -> None:
    before = machine.state
    if legal:
        machine.advance(step)
        return
    with pytest.raises(IllegalTransition, match=f"{step.name} is not allowed in {before.name}"):
        machine.advance(step)
    assert machine.state is before


def test_every_response_can_end_once() -> None:
    ends = [state for state, step in RESPONSE_TABLE if step is ResponseStep.END]
    assert set(ends) == set(ResponseState) - {ResponseState.ENDED}
    assert all(state is not ResponseState.ENDED for state, _ in RESPONSE_TABLE)
