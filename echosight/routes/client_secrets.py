"""Ephemeral keys: what a server of one's own hands to a browser instead of its token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """A key, when it expires (Unix seconds), and the session it opens: as GA writes it, or `flat` as beta does."""

    value: str
    expires_at: int
    session: dict[str, Any]
    flat: bool = False
    transcribes: bool = False
    """The session only transcribes, which a flat one cannot say of itself."""


class ClientSecretStore:
    """The keys that were handed out; each works until it expires, as often as it is used."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[str, ClientSecret] = {}

    def issue(
        self, seconds: int, session: dict[str, Any], flat: bool = False, transcribes: bool = False
    ) -> ClientSecret:
        """A new key. Where there are too many, the oldest goes."""
        self._forget_expired()
        if len(self._known) >= MAX_KEYS:
            del self._known[next(iter(self._known))]
        secret = ClientSecret(f"ek_{secrets.token_hex(16)}", int(self._clock()) + seconds, session, flat, transcribes)
        self._known[secret.value] = secret
        return secret

    def find(self, value: str | None) -> ClientSecret | None:
        """The key of that value, unless it has expired."""
        self._forget_expired()
        return self._known.get(value or "")

    def _forget_expired(self) -> None:
        now = self._clock()
        for value in [v for v, secret in self._known.items() if secret.expires_at <= now]:
            del self._known[value]
