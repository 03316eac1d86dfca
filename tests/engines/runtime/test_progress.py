from __future__ import annotations

import pytest

from echosight.engines.runtime.progress import LoadProgress, StartupProgress, follow_transformers, tell
from echosight.errors import SetupError


def test_what_is_told_is_told_of_the_part_that_this_thread_loads() -> None:
    outer, inner = LoadProgress("outer"), LoadProgress("inner")

    def build() -> int:
        tell("weights", 0.25)
        inner.run(lambda: tell("steps"))
        return 7

    assert (str(outer), outer.run(build)) == ("outer", 7)
    tell("nobody's")
    assert (str(outer), str(inner)) == ("outer: weights 25%", "inner: steps")


def test_the_bars_of_transformers_are_told_and_shown(capfd: pytest.CaptureFixture[str]) -> None:
    bars = pytest.importorskip("transformers").utils.logging
    loading = LoadProgress("big")
    told = []

    def build() -> None:
        for _ in bars.tqdm(range(4), desc="Loading weights", mininterval=0):
            told.append(str(loading))

    before = bars._tqdm_hook
    try:
        follow_transformers()
        loading.run(build)
        list(bars.tqdm(range(4), desc="of nobody"))
    finally:
        bars.set_tqdm_hook(before)
    assert told[1:] == ["big: weights 25%", "big: weights 50%", "big: weights 75%"]
    assert str(loading) == "big: weights 100%"
    shown = capfd.readouterr().err
    assert "Loading weights: 100%" in shown
    assert "of nobody: 100%" in shown


async def test_the_roll_names_who_is_not_up_yet() -> None:
    roll = StartupProgress()
    seen = []

    class Plain:
        name = "plain"

        async def start(self) -> None:
            seen.append(str(roll))

    class Telling:
        name = "telling"

        def __init__(self) -> None:
            self.loading = LoadProgress(self.name)

        async def start(self) -> None:
            self.loading.tell("weights", 0.5)
            seen.append(str(roll))
            await roll.start(Plain())
            raise SetupError("broken")

    with pytest.raises(SetupError):
        await roll.start(Telling())
    assert seen == ["telling: weights 50%", "telling: weights 50%, plain"]
    assert str(roll) == ""
