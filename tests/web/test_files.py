"""The page and its files as they are sent: to whom, under which policy, and only once."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from echosight.app import on_error
from echosight.engines.stub import FakeEngine
from echosight.errors import InputError
from echosight.routes import web
from echosight.settings import Settings

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Manager:
    engine = FakeEngine()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.state.settings, app.state.manager = Settings(api_tokens=(SecretStr("sesame"),)), Manager()
    app.add_exception_handler(InputError, on_error)
    app.include_router(web.router)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://echosight") as client:
        yield client


async def test_a_browser_gets_the_page_without_a_token(http: httpx.AsyncClient) -> None:
    page = await http.get("/", headers=BROWSER)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "<h1>" in page.text


async def test_others_get_what_the_server_offers(http: httpx.AsyncClient) -> None:
    refused = await http.get("/")
    assert refused.status_code == 401
    told = (await http.get("/", headers={"Authorization": "Bearer sesame"})).json()
    assert told["model"] == "fake"
    assert told["voices"] == ["one"]
    assert told["recording"] is False
    assert "/ws/stream" in told["endpoints"]["echosight"]


async def test_whatever_the_page_names_is_there(http: httpx.AsyncClient) -> None:
    page = (await http.get("/", headers=BROWSER)).text
    style = (await http.get("/web/style.css")).text
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page) + re.findall(r'url\("([^"]+)"\)', style)
    for script in Path(web.FOLDER).glob("*.js"):
        named += [f"/web/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())]
        named += re.findall(r'addModule\("([^"]+)"\)', script.read_text())
    assert len(set(named)) > 12
    for name in named:
        assert (await http.get(name)).status_code == 200, name


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/web/style.css", "/web/icon.svg", "/web/fonts/geist.woff2"])
async def test_the_policy_is_strict(http: httpx.AsyncClient, path: str) -> None:
    headers = (await http.get(path, headers=BROWSER)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


async def test_a_file_is_sent_once_and_packed(http: httpx.AsyncClient) -> None:
    plain = await http.get("/web/app.js", headers={"Accept-Encoding": "identity"})
    packed = await http.get("/web/app.js", headers={"Accept-Encoding": "gzip"})
    assert plain.text == packed.text
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) == len(gzip.compress(plain.content, mtime=0)) < len(plain.content) / 2
    assert plain.headers["etag"] != packed.headers["etag"]
    again = await http.get("/web/app.js", headers={"If-None-Match": packed.headers["etag"]})
    assert again.status_code == 304
    assert not again.content


@pytest.mark.parametrize(
    "path", ["/web/", "/web/../settings.py", "/web/%2e%2e/settings.py", "/web/fonts/geist-LICENSE.txt"]
)
async def test_nothing_else_is_sent(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


def test_it_weighs_little() -> None:
    assert sum(len(file.body) for file in web.FILES.values()) < 200_000
