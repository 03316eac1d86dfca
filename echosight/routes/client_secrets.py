"""Ephemeral keys: a developer's own server hands them to a browser instead of its token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi.requests import HTTPConnection

MAX_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """A key, when it expires (Unix seconds), and the session that it opens, in GA's shape or (`flat`) in beta's."""

    value: str
    expires_at: int
    session: dict[str, Any]
    flat: bool = False
    transcribes: bool = False
    """The session only transcribes; a flat session object cannot say so."""


class ClientSecretStore:
    """The keys that the server has issued. A key may be used any number of times until it expires."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._secrets: dict[str, ClientSecret] = {}

    def issue(
        self, seconds: int, session: dict[str, Any], flat: bool = False, transcribes: bool = False
    ) -> ClientSecret:
        """A new key, valid for `seconds`. With more than `MAX_KEYS` of them, the oldest is dropped."""
        self._drop_expired()
        if len(self._secrets) >= MAX_KEYS:
            del self._secrets[next(iter(self._secrets))]
        secret = ClientSecret(f"ek_{secrets.token_hex(16)}", int(self._clock()) + seconds, session, flat, transcribes)
        self._secrets[secret.value] = secret
        return secret

    def find(self, value: str | None) -> ClientSecret | None:
        """The key of that value, unless it has expired."""
        self._drop_expired()
        return self._secrets.get(value or "")

    def _drop_expired(self) -> None:
        now = self._clock()
        for value in [v for v, secret in self._secrets.items() if secret.expires_at <= now]:
            del self._secrets[value]


def client_secrets_of(connection: HTTPConnection) -> ClientSecretStore:
    store: ClientSecretStore = connection.app.state.client_secrets
    return store
