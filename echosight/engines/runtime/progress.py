"""What is being loaded, and how much of it is done: said by the thread that loads, shown by /health."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class LoadProgress:
    """How far something called `name` has come, for people."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._what = ""
        self._done: float | None = None

    def __str__(self) -> str:
        share = "" if self._done is None else f" {self._done:.0%}"
        return f"{self._name}: {self._what}{share}" if self._what else self._name

    def run(self, build: Callable[[], T]) -> T:
        """Build in this thread; what is told in it meanwhile is told of this."""
        token = _current.set(self)
        try:
            return build()
        finally:
            _current.reset(token)

    def tell(self, what: str, done: float | None) -> None:
        if what != self._what:
            log.info("%s: loading %s", self._name, what)
        self._what, self._done = what, done


# Bars are made deep inside other people's code, so the thread is what leads to the part that is being loaded.
_current: ContextVar[LoadProgress | None] = ContextVar("loading", default=None)


def tell(what: str, done: float | None = None) -> None:
    """What is being loaded by this thread; `done` is the share of it (0-1), where it is known."""
    if (loading := _current.get()) is not None:
        loading.tell(what, done)


class Part(Protocol):
    """Anything with a name that has to be started. One that can tell more than its name has `loading`."""

    @property
    def name(self) -> str: ...

    async def start(self) -> None: ...


class StartupProgress:
    """The parts that are being started."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def __str__(self) -> str:
        return ", ".join(str(getattr(part, "loading", "") or part.name) for part in self._parts)

    async def start(self, part: Part) -> None:
        self._parts.append(part)
        try:
            await part.start()
        finally:
            self._parts.remove(part)


def follow_transformers() -> None:
    """Have what transformers shows on the terminal while it reads weights told as well."""
    from transformers.utils import logging as bars

    # The first releases of transformers 5 have no such hook: there, the share of the weights is not known.
    if hasattr(bars, "set_tqdm_hook"):
        bars.set_tqdm_hook(_bar_of_weights)


def _bar_of_weights(make: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    # Where bars are switched off, `make` is no class of bars.
    known = isinstance(make, type) and hasattr(make, "update") and _current.get() is not None
    return (progress_bar(make, "weights") if known else make)(*args, **given)


def progress_bar(bar: Any, what: str, unit: str = "it") -> Any:
    """A class of tqdm's bars that also tell how far they are, those that count in `unit`."""
    loading = _current.get()

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        self.tells = loading is not None and given.get("unit", "it") == unit
        bar.__init__(self, *args, **given)

    def say(self: Any) -> None:
        if loading is not None and self.tells and self.total:
            loading.tell(what, min(self.n / self.total, 1.0))

    def update(self: Any, n: float | None = 1) -> Any:
        shown = bar.update(self, n)
        if self.disable:
            # Nobody looks at a terminal, so it does not count.
            self.n += n or 0
        say(self)
        return shown

    def refresh(self: Any, *args: Any, **given: Any) -> Any:
        # The total has grown: one more file is known.
        say(self)
        return bar.refresh(self, *args, **given)

    return type("TellingBar", (bar,), {"__init__": __init__, "update": update, "refresh": refresh})
