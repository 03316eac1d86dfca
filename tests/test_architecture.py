"""The floors of the house: a file imports only from floors below its own. Read `FLOORS` as the diagram.

`python -m tests.test_architecture` prints it with the number of imports between the rooms.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILES = 22
"""Files in one folder, `__init__.py` aside: what a reader can still overlook."""

FLOORS: dict[str, tuple[set[str], ...]] = {
    "": ({"model_server"}, {"vad_utils"}, {"echosight"}),
    "echosight": (
        {"app", "client"},
        {"routes"},
        {"server"},
        {"session", "wire"},
        {"engines", "turns"},
        {"vision", "settings"},
        {"audio"},
        {"events"},
        {"options"},
        {"conversation"},
        {"media"},
        {"errors"},
    ),
    "echosight.routes": (
        {
            "web",
            "webrtc",
            "realtime_sessions",
            "chat",
            "audio",
            "models",
            "echosight",
            "devices",
            "assistant",
            "vision",
        },
        {"realtime", "system"},
        {"auth", "handshake", "openai_errors"},
        {"dependencies", "errors", "client_secrets", "playout"},
    ),
    "echosight.server": (
        {"transport", "frames"},
        {"manager"},
        {"sessions", "observers"},
        {"engine_host", "recording", "metrics", "certificate"},
    ),
    "echosight.session": (
        {"session"},
        {"responses", "item_edits"},
        {"out_of_band"},
        {"generation"},
        {"response", "user_turn", "echo_guard", "snapshot"},
        {"response_items"},
        {"playback", "outbox", "state"},
    ),
    "echosight.wire": (
        {"realtime", "echosight", "openai", "hotpin", "assistant", "xiaozhi"},
        {"turn_detection", "echosight_messages"},
        {"fields"},
    ),
    "echosight.wire.realtime": (
        {"wire"},
        {"negotiation", "responses", "server_events"},
        {"session_object"},
        {"items"},
        {"dialects", "schema"},
        {"fields", "replay"},
    ),
    "echosight.engines": (
        {"registry"},
        {"cascade_parts", "omni", "minicpmo", "stub"},
        {"cascade"},
        {"llm", "stt", "tts"},
        {"runtime", "slots"},
    ),
    "echosight.engines.llm": ({"llama_cpp"}, {"openai_http", "echo", "transformers"}, {"messages"}),
    "echosight.engines.llm.transformers": (
        {"chat"},
        {"generator"},
        {"kv_cache", "checkpoint"},
        {"prompt"},
        {"output_parser"},
    ),
    "echosight.engines.minicpmo": ({"engine"}, {"process_cache", "process"}),
    "echosight.engines.omni": (
        {"load"},
        {"engine"},
        {"model_runner", "batch_scheduler"},
        {"generation"},
        {"conversation_cache"},
        {"user_turn"},
        {"context"},
        {"models"},
        {"vocoder"},
        {"graphs", "word_timer"},
    ),
    "echosight.engines.omni.models": (
        {"families"},
        {"qwen2_5", "qwen3"},
        {"base"},
        {"encoders"},
        {"batched_kv_cache", "kv_caches", "segments", "state", "mel", "positions", "tokens"},
    ),
    "echosight.engines.omni.vocoder": ({"causal", "windowed", "side_stream"}, {"dit", "bigvgan"}),
    "echosight.engines.runtime.huggingface": ({"source"}, {"download", "device", "memory"}),
    "echosight.engines.runtime": (
        {"huggingface"},
        {"subprocess_pool", "supervisor", "http_client", "sse"},
        {"ipc", "retries", "progress", "worker", "weights", "extras", "sampling"},
    ),
    "echosight.audio": ({"formats"}, {"codecs", "speech_spans", "opus"}, {"resampling", "g711", "silero"}, {"pcm"}),
    "echosight.turns": ({"audio_input"}, {"detector", "vad", "end_of_turn"}),
}

FILES = sorted(
    [*ROOT.glob("*.py"), *(file for file in ROOT.glob("echosight/**/*.py") if "node_modules" not in file.parts)]
)


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


@cache
def imports_of(file: Path) -> tuple[str, ...]:
    """The full name of every module that a file imports, wherever in the file."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.append(name if name in MODULES else str(node.module))
    return tuple(names)


def rooms(importer: str, imported: str) -> tuple[str, str, str] | None:
    """(house, room, room): the innermost folder that holds both, and where in it each of them is.

    None where one holds the other: a folder's `__init__` is its contract, which the files in the folder may import.
    """
    mine, theirs = importer.split("."), imported.split(".")
    depth = 0
    while depth < min(len(mine), len(theirs)) and mine[depth] == theirs[depth]:
        depth += 1
    if depth in (len(mine), len(theirs)):
        return None
    return ".".join(mine[:depth]), mine[depth], theirs[depth]


def floor(house: str, room: str) -> int:
    """The number of a room's floor, counted from the top."""
    for number, floor_rooms in enumerate(FLOORS[house]):
        if room in floor_rooms:
            return number
    raise AssertionError(f"{room} belongs to no floor of {house or 'the top level'}")


def arrows() -> Iterator[tuple[str, str, str]]:
    """(house, room, imported room) of every import that crosses from one room into another."""
    for module, file in MODULES.items():
        for imported in imports_of(file):
            if imported in MODULES and (crossing := rooms(module, imported)) is not None:
                yield crossing


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_downwards(file: Path) -> None:
    module = module_of(file)
    for imported in imports_of(file):
        if imported not in MODULES or (crossing := rooms(module, imported)) is None:
            continue
        house, mine, theirs = crossing
        if house in FLOORS:
            assert floor(house, mine) < floor(house, theirs), f"{name_of(file)} imports {imported}"


def test_the_plan_lists_the_rooms_that_exist_and_no_others() -> None:
    for house, floors in FLOORS.items():
        listed = [room for floor_rooms in floors for room in floor_rooms]
        depth = house.count(".") + 1 if house else 0
        exist = {
            module.split(".")[depth]
            for module in MODULES
            if (not house or module.startswith(f"{house}.")) and len(module.split(".")) > depth
        }
        assert sorted(listed) == sorted(exist), f"rooms of {house or 'the top level'}"


def test_no_folder_is_crowded() -> None:
    folders = Counter(file.parent for file in FILES if file.name != "__init__.py")
    crowded = {name_of(folder): count for folder, count in folders.items() if count > MAX_FILES}
    assert not crowded


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_web_framework_is_known_to_few(file: Path) -> None:
    module = module_of(file)
    if module in ("model_server", "echosight.app", "echosight.server.transport") or module.startswith(
        "echosight.routes"
    ):
        return
    assert not {name.partition(".")[0] for name in imports_of(file)} & {"fastapi", "starlette", "sse_starlette"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_threads_are_known_to_the_worker(file: Path) -> None:
    if module_of(file) == "echosight.engines.runtime.worker":
        return
    assert not {name.partition(".")[0] for name in imports_of(file)} & {"threading", "concurrent"}
    used = {node.attr for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    assert not used & {"to_thread", "run_in_executor"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_imports_the_program(file: Path) -> None:
    assert "model_server" not in imports_of(file)


def show() -> None:
    """Print the floors of each house, and how often the rooms import from each other."""
    count = Counter(arrows())
    for house, floors in FLOORS.items():
        print(f"\n{house or 'top level'}")
        for number, floor_rooms in enumerate(floors):
            print(f"  {len(floors) - number:2}  {'  '.join(sorted(floor_rooms))}")
        for (_, mine, theirs), times in sorted(item for item in count.items() if item[0][0] == house):
            print(f"      {mine} -> {theirs}  {times}")


if __name__ == "__main__":
    show()
