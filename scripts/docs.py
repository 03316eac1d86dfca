"""Write the generated parts of the documentation: they are read from the code, so they cannot be wrong.

    uv run python scripts/docs.py            # write them
    uv run python scripts/docs.py --check    # exit with 1 if a committed file is not up to date

Generated are docs/configuration.md and .env.example (from `Settings`), and in docs/architecture.md the transition
tables (from `echosight.session.state`).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic.fields import FieldInfo

from echosight.settings import _fields, _flag, _is_secret, _variable

ROOT = Path(__file__).resolve().parent.parent

CONFIGURATION = """# Configuration

<!-- Generated from `Settings` (echosight/settings.py) by scripts/docs.py. Do not edit. -->

Every setting is a command line flag and an environment variable. A flag overrides the variable, and the variable
overrides a line in the file `.env` of the working directory ([.env.example](../.env.example) has all of them). An empty
variable counts as not set. Tokens and keys have no flag, because process lists show flags.

`uv run model_server.py --help` prints the same list.
"""

ENV_EXAMPLE = """# All settings of EchoSight with their defaults.
# Copy this file to .env, and remove the # in front of the ones that you change.
# Generated from `Settings` by scripts/docs.py; docs/configuration.md has the same list.
"""

HEADER = "| flag | variable | default | range | meaning |\n|---|---|---|---|---|"

TITLES = {
    "server": "Server",
    "model": "Model",
    "parts": "Parts of a cascade and hosted services",
    "turns": "Turn detection",
    "bridge": "Clients of the Realtime Speech Bridge",
    "devices": "Small devices",
    "limits": "Limits",
    "recordings": "Recordings",
}


def generated() -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    architecture = ROOT / "docs" / "architecture.md"
    return {
        ROOT / "docs" / "configuration.md": configuration(),
        ROOT / ".env.example": env_example(),
        architecture: with_regions(architecture.read_text("utf-8"), {"states": transition_tables()}),
    }


# --- settings -------------------------------------------------------------------------------------


def configuration() -> str:
    """docs/configuration.md: one table for each group of settings."""
    parts = [CONFIGURATION]
    for group, fields in groupby(_fields(), key=lambda entry: entry[0]):
        rows = "\n".join(_row(name, field) for _, name, field in fields)
        parts.append(f"## {TITLES.get(group, group)}\n\n{HEADER}\n{rows}\n")
    return "\n".join(parts)


def _row(name: str, field: FieldInfo) -> str:
    flag = "" if _is_secret(field) else f"`{_flag(name)}`"
    if field.annotation is bool:
        flag += f", `--no-{name.replace('_', '-')}`"
    default = _default(field)
    description = (field.description or "").replace("|", "\\|")
    cells = (flag, f"`{_variable(name, field)}`", f"`{default}`" if default else "", _range(field), description)
    return f"| {' | '.join(cells)} |"


def env_example() -> str:
    """.env.example: every variable, commented out."""
    lines = [ENV_EXAMPLE]
    for group, fields in groupby(_fields(), key=lambda entry: entry[0]):
        lines.append(f"# --- {TITLES.get(group, group)} ---\n")
        lines += [f"# {field.description}\n#{_variable(name, field)}={_default(field)}\n" for _, name, field in fields]
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    """As a variable has it. Empty if there is none, or if it depends on the machine: then the description says so."""
    value = None if field.default_factory else field.default
    if value in (None, "", ()):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(field: FieldInfo) -> str:
    """The allowed values, from the field's constraints."""
    bounds: dict[str, Any] = {}
    for constraint in field.metadata:
        bounds |= {key: value for key in ("ge", "gt", "le") if (value := getattr(constraint, key, None)) is not None}
    low = f"> {bounds['gt']}" if "gt" in bounds else f"≥ {bounds['ge']}" if "ge" in bounds else ""
    return f"{low}, ≤ {bounds['le']}" if "le" in bounds else low


# --- state machines -------------------------------------------------------------------------------


def transition_tables() -> str:
    """The tables of `echosight.session.state`, one row for each transition."""
    if find_spec("echosight.session.state") is None:
        return "The transition tables of a session's two state machines."
    state = import_module("echosight.session.state")
    return "\n\n".join(
        (
            "`echosight/session/state.py` holds the two state machines of a session and explains them. A step that is\n"
            "not in its table raises `IllegalTransition`.",
            "The user's input, moved by the signals of turn detection:",
            _table(state.INPUT_TABLE),
            "A response:",
            _table(state.RESPONSE_TABLE),
        )
    )


def _table(table: Mapping[tuple[Enum, Enum], Enum]) -> str:
    rows = (f"| `{before.name}` | `{step.name}` | `{after.name}` |" for (before, step), after in table.items())
    return "\n".join(("| state | step | next state |", "|---|---|---|", *rows))


def with_regions(text: str, regions: Mapping[str, str]) -> str:
    """`text` with the content of its generated regions replaced. Raises ValueError if a region is missing."""
    for name, content in regions.items():
        begin, end = f"<!-- generated by scripts/docs.py: {name} -->\n", "<!-- end -->"
        region = re.search(re.escape(begin) + ".*?" + re.escape(end), text, re.DOTALL)
        if region is None:
            raise ValueError(f"no region {name!r}: expected {begin.strip()!r} and {end!r}")
        before, after = text[: region.start()], text[region.end() :]
        text = f"{before}{begin}{content}\n{end}{after}"
    return text


def outdated() -> Iterator[Path]:
    """The generated files that are not up to date."""
    for path, text in generated().items():
        if not path.exists() or path.read_text("utf-8") != text:
            yield path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="only report files that are not up to date")
    args = parser.parse_args()
    changed = list(outdated())
    if args.check and changed:
        names = ", ".join(str(path.relative_to(ROOT)) for path in changed)
        sys.exit(f"docs.py: not up to date: {names}; run `uv run python scripts/docs.py` and commit the result")
    texts = generated()
    for path in changed:
        path.write_text(texts[path], "utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
