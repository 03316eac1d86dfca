"""The page and its files over HTTP: access, security headers, caching, size."""

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
from echosight.errors import InputError
from echosight.routes import web
from echosight.settings import Settings
from tests.fakes import ScriptedEngine

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Manager:
    engine = ScriptedEngine()


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


async def test_other_clients_get_a_description_of_the_server(http: httpx.AsyncClient) -> None:
    refused = await http.get("/")
    assert refused.status_code == 401
    info = (await http.get("/", headers={"Authorization": "Bearer sesame"})).json()
    assert info["model"] == "fake"
    assert info["voices"] == ["one"]
    assert info["recording"] is False
    assert "/ws/stream" in info["endpoints"]["echosight"]


async def test_every_file_that_the_page_refers_to_exists(http: httpx.AsyncClient) -> None:
    page = (await http.get("/", headers=BROWSER)).text
    style = (await http.get("/web/style.css")).text
    urls = re.findall(r'(?:src|href)="(/[^"]+)"', page) + re.findall(r'url\("([^"]+)"\)', style)
    for script in Path(web.FOLDER).glob("*.js"):
        urls += [f"/web/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())]
        urls += re.findall(r'addModule\("([^"]+)"\)', script.read_text())
    assert len(set(urls)) > 12
    for url in urls:
        assert (await http.get(url)).status_code == 200, url


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/web/style.css", "/web/icon.svg", "/web/fonts/geist.woff2"])
async def test_the_policy_is_strict(http: httpx.AsyncClient, path: str) -> None:
    headers = (await http.get(path, headers=BROWSER)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


async def test_files_are_compressed_and_cached(http: httpx.AsyncClient) -> None:
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
async def test_other_files_are_not_served(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


def test_all_files_together_are_small() -> None:
    assert sum(len(file.body) for file in web.FILES.values()) < 200_000
