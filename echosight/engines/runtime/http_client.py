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

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""How long a service may send nothing: a large model takes a while to read a long conversation."""

SPEECH_READ_TIMEOUT_S = 15.0
"""The same for services that transcribe or speak one sentence: later is too late for a conversation."""

MAX_RESPONSE_BYTES = 16 << 20
MAX_DETAIL_BYTES = 16_384
DETAIL_TIMEOUT_S = 2.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STATUS_TEXT = {
    400: "bad request",
    401: "authentication failed; check the API key",
    402: "payment required",
    403: "access denied to this API key",
    404: "no such address or model",
    413: "request too large",
    422: "invalid request",
}
RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be different for the next attempt."""


class PermanentError(EngineFailure):
    """The service understood the request and refuses it: a retry cannot work.

    `status` is the HTTP status, `detail` the reason in the service's own words.
    """

    def __init__(self, message: str, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class HttpService:
    """All requests go to paths below `url`; `key` goes into the Authorization header, after `scheme`.

    Raises `SetupError` where `url` is not one.
    """

    def __init__(
        self, url: str, key: str | None = None, *, scheme: str = "Bearer", read_timeout_s: float = READ_TIMEOUT_S
    ) -> None:
        self.url = _parse(url)
        self.read_timeout_s = read_timeout_s
        self._headers = {"Authorization": f"{scheme} {key}"} if key else {}
        self._client: httpx.AsyncClient | None = None

    @property
    def name(self) -> str:
        """Host and port, for people."""
        return self.url.netloc.decode()

    async def start(self) -> None:
        """Create the pool of connections. Does not connect yet; see `ping`."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                headers=self._headers,
                timeout=httpx.Timeout(self.read_timeout_s, connect=CONNECT_TIMEOUT_S),
                limits=httpx.Limits(max_connections=256, max_keepalive_connections=32, keepalive_expiry=60),
                # A proxy from the environment does not lead to this machine.
                trust_env=self.url.host not in LOOPBACK,
            )

    async def ping(self) -> None:
        """Start, and check that the service responds and accepts the key. Raises `SetupError`."""
        await self.start()
        try:
            async with self.request("GET", ""):
                pass
        except PermanentError as error:
            # A bare GET is not a valid request, so any status but 401/403 proves that the service is up.
            if error.status in (401, 403):
                raise SetupError(error.message) from error
        except TransientError as error:
            raise SetupError(f"{error.message}; check the address {self.url}") from error

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @asynccontextmanager
    async def request(self, method: str, path: str, **kwargs: Any) -> AsyncIterator[httpx.Response]:
        """The response, before its body is read. `kwargs` are those of httpx. Leaving early closes the request.

        Raises `TransientError` where a retry may work and `PermanentError` where it cannot, also while the caller reads
        the body.
        """
        if self._client is None:
            raise EngineFailure(f"The client of {self.name} is not started")
        try:
            async with self._client.stream(method, f"{self.url}/{path}" if path else self.url, **kwargs) as response:
                if not response.is_success:
                    raise await self._failure(response)
                yield response
        except httpx.ConnectTimeout as error:
            raise TransientError(f"{self.name} did not accept a connection within {CONNECT_TIMEOUT_S:g} s") from error
        except httpx.TimeoutException as error:
            raise TransientError(f"{self.name} sent nothing for {self.read_timeout_s:g} s") from error
        except httpx.ConnectError as error:
            raise TransientError(f"{self.name} cannot be reached: {error}") from error
        except httpx.HTTPError as error:
            raise TransientError(f"The connection to {self.name} broke off: {error or type(error).__name__}") from error

    async def json(self, method: str, path: str, **kwargs: Any) -> Any:
        """The whole response as JSON. Raises as `request` does, and `EngineFailure` where the body is not JSON."""
        data = bytearray()
        try:
            # httpx's timeout is per read; bound the whole response so that a slow drip cannot hang us.
            async with (
                asyncio.timeout(CONNECT_TIMEOUT_S + self.read_timeout_s),
                self.request(method, path, **kwargs) as response,
            ):
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > MAX_RESPONSE_BYTES:
                        raise EngineFailure(f"{self.name} sent more than {MAX_RESPONSE_BYTES} bytes")
        except TimeoutError:
            raise TransientError(f"{self.name} did not finish its response within {self.read_timeout_s:g} s") from None
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise EngineFailure(f"{self.name} sent a response that is not JSON") from error

    async def _failure(self, response: httpx.Response) -> EngineFailure:
        status = response.status_code
        if status in RETRYABLE:
            problem = "too many requests" if status == 429 else "service unavailable"
            return TransientError(f"{self.name}: {problem} ({status})", retry_after(response.headers))
        detail = await _error_detail(response)
        problem = STATUS_TEXT.get(status, "request failed")
        return PermanentError(f"{self.name}: {problem} ({status}){': ' if detail else ''}{detail}", status, detail)


def key_for(url: str, settings: Settings) -> str | None:
    """The API key that the settings hold for this origin. A key never goes to another host than its own."""
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
    """`url` with `route` at its end; users may give it with the route or without."""
    url = url.rstrip("/")
    return url if url.endswith(route) else f"{url}/{route}"


def _parse(url: str) -> httpx.URL:
    with contextlib.suppress(httpx.InvalidURL):
        parsed = httpx.URL(url.rstrip("/"))
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    raise SetupError(f"{url} is no address; give one such as http://localhost:8000/v1")


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = _parse(url)
    return parsed.scheme, parsed.host, parsed.port


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until the time that the header ``Retry-After`` gives as a number or a date; None without one."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


async def _error_detail(response: httpx.Response) -> str:
    """The reason that the body of a failed response gives, in one line of at most 300 characters."""
    body = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DETAIL_TIMEOUT_S):
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_DETAIL_BYTES:
                    break
    try:
        detail = orjson.loads(body)
    except orjson.JSONDecodeError:
        detail = body.decode(errors="replace")
    for field in ("error", "message", "detail", "err_msg"):
        if isinstance(detail, dict) and detail.get(field):
            detail = detail[field]
    return " ".join(str(detail).split())[:300]
