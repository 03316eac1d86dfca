"""One HTTP service: its address, its key, a pool of connections, and what its failures mean."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from echosight.engines.runtime.retries import TransientError
from echosight.errors import EngineFailure, SetupError
from echosight.settings import Settings

CONNECT_S = 5.0
SILENCE_S = 60.0
"""How long a service may say nothing: a large model that reads a long conversation takes a while."""

SPEECH_SILENCE_S = 15.0
"""The same for services that hear or speak one sentence: whoever takes longer is of no use in a conversation."""

ANSWER_BYTES = 16 << 20
DETAIL_BYTES = 16_384
DETAIL_S = 2.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HELP = {
    400: "does not take the request",
    401: "wants a key, or another one",
    402: "wants to be paid",
    403: "does not admit this key",
    404: "has no such address or model",
    413: "finds the request too large",
    422: "does not take the request",
}
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be others the next time."""


class PermanentError(EngineFailure):
    """The service understood, and will say the same the next time. `detail` is in its own words."""

    def __init__(self, message: str, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class HttpService:
    """`url` is what all paths begin with; `key` goes into the Authorization header, behind `scheme`."""

    def __init__(
        self, url: str, key: str | None = None, *, scheme: str = "Bearer", silence_s: float = SILENCE_S
    ) -> None:
        self.url = _address(url)
        self._headers = {"Authorization": f"{scheme} {key}"} if key else {}
        self.silence_s = silence_s
        self._client: httpx.AsyncClient | None = None

    @property
    def name(self) -> str:
        """The host, for people."""
        return self.url.netloc.decode()

    async def start(self) -> None:
        if self._client is None:
            self._client = httpx.AsyncClient(
                headers=self._headers,
                timeout=httpx.Timeout(self.silence_s, connect=CONNECT_S),
                limits=httpx.Limits(max_connections=256, max_keepalive_connections=32, keepalive_expiry=60),
                # A proxy of the environment does not lead to this machine.
                trust_env=self.url.host not in LOOPBACK,
            )

    async def reach(self) -> None:
        """Start, and see whether somebody answers at all. Raises `SetupError` where not, or not to this key."""
        await self.start()
        try:
            async with self.request("GET", ""):
                pass
        except PermanentError as error:
            # It is not asked as it wants to be asked, so most other answers are good ones.
            if error.status in (401, 403):
                raise SetupError(error.message) from error
        except TransientError as error:
            raise SetupError(f"{error.message}; is its address right? {self.url}") from error

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @asynccontextmanager
    async def request(self, method: str, path: str, **given: Any) -> AsyncIterator[httpx.Response]:
        """The response, its body yet to be read. Leaving early closes the request.

        Raises `TransientError` where a retry may work and `PermanentError` where it cannot, also while the caller reads
        the body.
        """
        if self._client is None:
            raise EngineFailure(f"{self.name} was not started")
        try:
            async with self._client.stream(method, f"{self.url}/{path}" if path else self.url, **given) as response:
                if not response.is_success:
                    raise await self._failure(response)
                yield response
        except httpx.ConnectTimeout as error:
            raise TransientError(f"{self.name} does not answer within {CONNECT_S:g} s") from error
        except httpx.TimeoutException as error:
            raise TransientError(f"{self.name} said nothing for {self.silence_s:g} s") from error
        except httpx.ConnectError as error:
            raise TransientError(f"{self.name} cannot be reached: {error}") from error
        except httpx.HTTPError as error:
            raise TransientError(f"{self.name} broke off: {error or type(error).__name__}") from error

    async def json(self, method: str, path: str, **given: Any) -> Any:
        """The whole answer as JSON. Raises as `request` does, and EngineFailure for what is no JSON."""
        data = bytearray()
        try:
            # The client's own limit is one on silence: whoever sends a byte now and then would never end.
            async with asyncio.timeout(CONNECT_S + self.silence_s), self.request(method, path, **given) as response:
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > ANSWER_BYTES:
                        raise EngineFailure(f"{self.name} answered without end")
        except TimeoutError:
            raise TransientError(f"{self.name} was not done within {self.silence_s:g} s") from None
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise EngineFailure(f"{self.name} answered with something that is no JSON") from error

    async def _failure(self, response: httpx.Response) -> EngineFailure:
        status = response.status_code
        if status in PASSING:
            trouble = "gets too many requests" if status == 429 else "is in trouble"
            return TransientError(f"{self.name} {trouble} ({status})", retry_after(response.headers))
        detail = await _detail(response)
        help = HELP.get(status, "does not do what was asked")
        return PermanentError(f"{self.name} {help} ({status}){': ' if detail else ''}{detail}", status, detail)


def key_for(url: str, settings: Settings) -> str | None:
    """The key that belongs to an address. No key ever goes to a host that it was not given for."""
    keys = {
        "https://api.groq.com": settings.groq_api_key,
        "https://api.deepseek.com": settings.deepseek_api_key,
        settings.openai_api_base: settings.openai_api_key,
        settings.whisper_url: settings.whisper_api_key,
        settings.tts_api_url: settings.tts_api_key,
    }
    for base, key in keys.items():
        if base and key is not None and _origin(base) == _origin(url):
            return key.get_secret_value()
    return None


def deepgram_key(settings: Settings) -> str:
    """Raises `SetupError` where there is none."""
    if settings.deepgram_api_key is None:
        raise SetupError("Deepgram needs a key: set DEEPGRAM_API_KEY")
    return settings.deepgram_api_key.get_secret_value()


def endpoint(url: str, route: str) -> str:
    """An address may be given with the route or without."""
    url = url.rstrip("/")
    return url if url.endswith(route) else f"{url}/{route}"


def _address(url: str) -> httpx.URL:
    with contextlib.suppress(httpx.InvalidURL):
        address = httpx.URL(url.rstrip("/"))
        if address.scheme in ("http", "https") and address.host:
            return address
    raise SetupError(f"{url} is no address; give one such as http://localhost:8000/v1")


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = _address(url)
    return parsed.scheme, parsed.host, parsed.port


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, by the header's number or date."""
    given = headers.get("retry-after", "")
    try:
        return max(0.0, float(given))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


async def _detail(response: httpx.Response) -> str:
    """What the service says about a failure, in one line."""
    body = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DETAIL_S):
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > DETAIL_BYTES:
                    break
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        said = body.decode(errors="replace")
    for field in ("error", "message", "detail", "err_msg"):
        if isinstance(said, dict) and said.get(field):
            said = said[field]
    return " ".join(str(said).split())[:300]
