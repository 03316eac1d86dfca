"""The floors of the house: a file imports only from floors below its own. Read it as the diagram."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = (
    {"model_server"},
    {"routes", "client", "say"},
    {"transport"},
    {"manager"},
    {"session", "analysis"},
    {"answering", "edits"},
    {"asides"},
    {"making"},
    {"answer", "hearing", "ear", "outbox", "echo_guard"},
    {"ledger", "finished"},
    {"wire", "engines", "turns", "journal", "metrics"},
    {"audio", "pictures", "settings", "https"},
    {"events"},
    {"options"},
    {"conversation", "resampling"},
    {"media", "g711"},
    {"errors", "vad_utils", "echosight"},
    {"silero_numpy"},
)
FLOOR = {room: len(FLOORS) - at for at, rooms in enumerate(FLOORS) for room in rooms}

FILES = sorted(
    [*ROOT.glob("*.py"), *(file for file in ROOT.glob("echosight/**/*.py") if "node_modules" not in file.parts)]
)


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for file in FILES}


def room_of(module: str) -> str:
    """`echosight.wire.content` is in the room `wire`, `echosight` itself in `echosight`."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "echosight" and rest else first


def imports_of(file: Path) -> Iterator[str]:
    """The full name of every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_downwards(file: Path) -> None:
    room = room_of(module_of(file))
    assert room in FLOOR, f"{name_of(file)} belongs to no floor"
    for imported in imports_of(file):
        below = room_of(imported)
        if imported.partition(".")[0] == "echosight" or imported in MODULES:
            assert below in FLOOR, f"{name_of(file)} imports {imported}, which belongs to no floor"
            assert below == room or FLOOR[below] < FLOOR[room], f"{name_of(file)} imports {imported}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_web_framework_is_known_to_three(file: Path) -> None:
    if room_of(module_of(file)) not in {"model_server", "routes", "transport"}:
        known = {name.partition(".")[0] for name in imports_of(file)}
        assert not known & {"fastapi", "starlette", "sse_starlette"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_threads_are_known_to_the_worker(file: Path) -> None:
    if module_of(file) == "echosight.engines.worker":
        return
    assert not {name.partition(".")[0] for name in imports_of(file)} & {"threading", "concurrent"}
    used = {node.attr for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    assert not used & {"to_thread", "run_in_executor"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nobody_imports_the_program(file: Path) -> None:
    assert "model_server" not in imports_of(file)
