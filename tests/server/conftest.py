"""Servers for tests: one that all share, and one for each test that changes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.server.serving import Serve, Server, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the built-in engine, shared by all tests that do not change it."""
    with running(tmp_path_factory.mktemp("server")) as shared:
        yield shared


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve("--flag", "value", VARIABLE="x")`: a server for one test."""
    with ExitStack() as stack:
        yield lambda *flags, **env: stack.enter_context(running(tmp_path, *flags, **env))
