"""What is being loaded, as /health shows it."""

from __future__ import annotations

import pytest

from echosight.engines.runtime.progress import LoadProgress, StartupProgress, hook_transformers_progress, report
from echosight.errors import SetupError


def test_reports_go_to_the_part_that_this_thread_loads() -> None:
    outer, inner = LoadProgress("outer"), LoadProgress("inner")

    def build() -> int:
        report("weights", 0.25)
        inner.run(lambda: report("steps"))
        return 7

    assert (str(outer), outer.run(build)) == ("outer", 7)
    report("of no part")
    assert (str(outer), str(inner)) == ("outer: weights 25%", "inner: steps")


def test_the_bars_of_transformers_are_reported_and_shown(capfd: pytest.CaptureFixture[str]) -> None:
    bars = pytest.importorskip("transformers").utils.logging
    loading = LoadProgress("big")
    reported = []

    def build() -> None:
        for _ in bars.tqdm(range(4), desc="Loading weights", mininterval=0):
            reported.append(str(loading))

    before = bars._tqdm_hook
    try:
        hook_transformers_progress()
        loading.run(build)
        list(bars.tqdm(range(4), desc="of no part"))
    finally:
        bars.set_tqdm_hook(before)
    assert reported[1:] == ["big: weights 25%", "big: weights 50%", "big: weights 75%"]
    assert str(loading) == "big: weights 100%"
    shown = capfd.readouterr().err
    assert "Loading weights: 100%" in shown
    assert "of no part: 100%" in shown


async def test_the_parts_that_are_not_up_yet_are_named() -> None:
    startup = StartupProgress()
    seen = []

    class Plain:
        name = "plain"

        async def start(self) -> None:
            seen.append(str(startup))

    class Reporting:
        name = "reporting"

        def __init__(self) -> None:
            self.loading = LoadProgress(self.name)

        async def start(self) -> None:
            self.loading.report("weights", 0.5)
            seen.append(str(startup))
            await startup.start(Plain())
            raise SetupError("broken")

    with pytest.raises(SetupError):
        await startup.start(Reporting())
    assert seen == ["reporting: weights 50%", "reporting: weights 50%, plain"]
    assert str(startup) == ""
