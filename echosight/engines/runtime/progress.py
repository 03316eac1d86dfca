"""What is being loaded and how far: reported by the thread that loads, shown by /health."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class LoadProgress:
    """How far the loading of the part `name` is. `str()` gives it as text for people."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._step = ""
        self._fraction: float | None = None

    def __str__(self) -> str:
        share = "" if self._fraction is None else f" {self._fraction:.0%}"
        return f"{self._name}: {self._step}{share}" if self._step else self._name

    def run(self, build: Callable[[], T]) -> T:
        """The result of `build`, run in this thread; calls of `report` in it report to this object."""
        token = _current.set(self)
        try:
            return build()
        finally:
            _current.reset(token)

    def report(self, step: str, fraction: float | None) -> None:
        """`step` is being loaded; `fraction` of it (0-1) is done, None where that is not known."""
        if step != self._step:
            log.info("%s: loading %s", self._name, step)
        self._step, self._fraction = step, fraction


# tqdm bars are created inside third-party code; a ContextVar links them to the part being loaded.
_current: ContextVar[LoadProgress | None] = ContextVar("loading", default=None)


def report(step: str, fraction: float | None = None) -> None:
    """Report to the `LoadProgress` that runs in this thread, if there is one: see `LoadProgress.report`."""
    if (progress := _current.get()) is not None:
        progress.report(step, fraction)


class Startable(Protocol):
    """A part with a name and a `start`. One that can report more than its name has an attribute `loading`."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None: ...


class StartupProgress:
    """The parts that are being started. `str()` gives them as text for people; it is empty when all are up."""

    def __init__(self) -> None:
        self._starting: list[Startable] = []

    def __str__(self) -> str:
        return ", ".join(str(getattr(part, "loading", "") or part.name) for part in self._starting)

    async def start(self, part: Startable) -> None:
        """Start `part`, and list it meanwhile. Raises what its `start` raises."""
        self._starting.append(part)
        try:
            await part.start()
        finally:
            self._starting.remove(part)


def hook_transformers_progress() -> None:
    """Have transformers' progress bars for loading weights report here too."""
    from transformers.utils import logging as bars

    # The first releases of transformers 5 have no such hook: there, the share of the weights is not known.
    if hasattr(bars, "set_tqdm_hook"):
        bars.set_tqdm_hook(_weights_bar)


def _weights_bar(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Where bars are switched off, `factory` is not a class of bars.
    can_report = isinstance(factory, type) and hasattr(factory, "update") and _current.get() is not None
    return (progress_bar(factory, "weights") if can_report else factory)(*args, **kwargs)


def progress_bar(bar: Any, step: str, unit: str = "it") -> Any:
    """A subclass of the tqdm class `bar` whose instances report to the part being loaded in this thread.

    Only bars that count in `unit` do; they report as `step`.
    """
    progress = _current.get()

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self.reports = progress is not None and kwargs.get("unit", "it") == unit
        bar.__init__(self, *args, **kwargs)

    def report_share(self: Any) -> None:
        if progress is not None and self.reports and self.total:
            progress.report(step, min(self.n / self.total, 1.0))

    def update(self: Any, n: float | None = 1) -> Any:
        shown = bar.update(self, n)
        if self.disable:
            # Without a terminal, tqdm does not count.
            self.n += n or 0
        report_share(self)
        return shown

    def refresh(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The total has grown: the library found one more file.
        report_share(self)
        return bar.refresh(self, *args, **kwargs)

    return type("ReportingBar", (bar,), {"__init__": __init__, "update": update, "refresh": refresh})
