"""Importing the application changes nothing in other libraries: what the program needs, it sets when it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.server.serving import ROOT

LIST = """
import sys, json
before = set(sys.modules)
import {module}
own = ("echosight", "model_server", "vad_utils")
print(json.dumps([name for name in sys.modules if name not in before and name.partition(".")[0] not in own]))
"""

COMPARE = """
import contextlib, importlib, json, logging, os, signal, sys, warnings

for name in json.load(sys.stdin):
    with contextlib.suppress(ImportError):  # some modules only exist as attributes of others
        importlib.import_module(name)

def state():
    import asyncio, socket, uvicorn
    from sse_starlette.sse import AppStatus
    loggers = {{"root": logging.getLogger(), **logging.root.manager.loggerDict}}
    return {{
        "loggers": {{
            name: [logger.level, logger.propagate, logger.disabled, len(logger.handlers), len(logger.filters)]
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger) and not name.startswith(("echosight", "model_server"))
        }},
        "AppStatus": {{name: repr(value) for name, value in vars(AppStatus).items() if not name.startswith("__")}},
        "uvicorn": repr(uvicorn.Server.handle_exit),
        "warnings": [repr(entry) for entry in warnings.filters],
        "environment": dict(os.environ),
        "signals": {{name: repr(signal.getsignal(getattr(signal, name))) for name in ("SIGINT", "SIGTERM", "SIGHUP")}},
        "event loop": repr(asyncio.get_event_loop_policy().__class__),
        "socket timeout": socket.getdefaulttimeout(),
        "excepthook": repr(sys.excepthook),
    }}

before = state()
import {module}
after = state()
for name, value in list(after["loggers"].items()):
    if name not in before["loggers"] and value == [0, True, False, 0, 0]:
        del after["loggers"][name]  # new, and as logging makes it
print(json.dumps([before, after]))
"""


def fresh(code: str, text: str = "") -> Any:
    """What an interpreter that has imported nothing prints as JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, input=text, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("module", ["echosight.app", "model_server"])
def test_importing_changes_nothing_in_other_libraries(module: str) -> None:
    """Other libraries are imported first, so that what differs afterwards is our own doing."""
    libraries = fresh(LIST.format(module=module))
    assert "sse_starlette.sse" in libraries
    before, after = fresh(COMPARE.format(module=module), json.dumps(libraries))
    if module == "model_server":
        assert after["environment"].pop("OPENBLAS_NUM_THREADS") == "1"
    assert after == before
