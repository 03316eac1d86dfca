"""The documentation against the code: links, names of files, error codes, metrics, generated parts, examples."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from echosight.events import ErrorRaised, Reset, ResponseEnded, Waterfall
from echosight.server.metrics import Metrics

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = sorted([ROOT / "model_server.py", *ROOT.glob("echosight/**/*.py")])

"""Files that the pages name and that do not exist yet."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


# --- links and names of files ---------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{target}: there is no file {file}"
        if anchor:
            assert anchor in anchors(linked.read_text("utf-8")), f"{target}: there is no such heading"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_pages_name_exist(path: Path) -> None:
    folders = "echosight|tests|scripts|benchmarks|docs|deploy"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", path.read_text("utf-8")):
        assert (ROOT / name).exists(), name


def test_the_index_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", page("README.md")))
    assert linked == {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}


# --- errors ---------------------------------------------------------------------------------------


@cache
def trees() -> dict[Path, ast.Module]:
    """The syntax trees of the server's code."""
    return {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}


@cache
def calls() -> list[tuple[Path, ast.Call]]:
    return [(path, node) for path, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.Call)]


def pattern_of(node: ast.expr) -> str | None:
    """A regular expression for the strings that an expression can be; None where it is not a literal."""
    match node:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=values):
            return "".join(re.escape(str(v.value)) if isinstance(v, ast.Constant) else r"\w+" for v in values)
    return None


@cache
def codes() -> frozenset[str]:
    """Patterns of all error codes: ``code=`` in calls, and the class attribute ``code``."""
    found = {pattern_of(keyword.value) for _, call in calls() for keyword in call.keywords if keyword.arg == "code"}
    classes = (node for tree in trees().values() for node in tree.body if isinstance(node, ast.ClassDef))
    for statement in (statement for node in classes for statement in node.body):
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "code":
            found.add(pattern_of(statement.value))
    return frozenset(pattern for pattern in found if pattern)


def test_every_error_code_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", page("errors.md")))
    assert len(codes()) > 25
    missing = {code for code in codes() if not any(re.fullmatch(code, known) for known in documented)}
    assert not missing, f"add to docs/errors.md: {sorted(missing)}"


def test_every_http_status_is_documented() -> None:
    documented = {int(status) for status in re.findall(r"\b([2-5]\d\d)\b", section("errors.md", "HTTP status codes"))}
    found = {400, 500, 503}
    for path, call in calls():
        values = [k.value for k in call.keywords if k.arg in ("status", "status_code")]
        if "routes" in path.parts and ast.unparse(call.func) in ("HTTPException", "JSONResponse", "Response"):
            values += call.args
        found |= {int(v.value) for v in values if isinstance(v, ast.Constant) and type(v.value) is int}
    assert len(found) > 8
    assert found <= documented, f"add to docs/errors.md: {sorted(found - documented)}"


def test_every_close_code_is_documented() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d{4}) ", page("errors.md"), re.MULTILINE)}
    found = set()
    for path, tree in trees().items():
        if {"routes", "server"} & set(path.parts):
            found |= set(constants(tree)) | set(close_arguments(tree))
    assert len(found) > 2
    assert found <= documented, f"add to docs/errors.md: {sorted(found - documented)}"


def constants(tree: ast.Module) -> Iterator[int]:
    """The values of module constants that are named as close codes."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "CLOSE" in ast.unparse(node.targets[0]):
            yield from (n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and type(n.value) is int)


def close_arguments(tree: ast.Module) -> Iterator[int]:
    """Close codes that are written in a call of ``close``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "close":
            literals = [n for arg in node.args for n in ast.walk(arg) if isinstance(n, ast.Constant)]
            yield from (n.value for n in literals if type(n.value) is int and n.value >= 1000)


def section(name: str, heading: str) -> str:
    return page(name).split(f"\n## {heading}\n")[1].partition("\n## ")[0]


# --- metrics --------------------------------------------------------------------------------------


def test_every_metric_is_documented() -> None:
    metrics = Metrics("1.0", "engine")
    metrics.input(Reset())
    metrics.failure(ErrorRaised("invalid_value", "message"))
    stages = dict.fromkeys(Waterfall.__dataclass_fields__, 1.0)
    metrics.response_ended(ResponseEnded("resp_1", "completed", waterfall=Waterfall(**stages)))
    text = page("metrics.md")
    for family in text_string_to_metric_families(metrics.render().decode()):
        if family.name.endswith("_created"):
            continue
        base = family.name if family.type == "histogram" else family.samples[0].name
        row = re.search(rf"^\| `{base}` \| .*$", text, re.MULTILINE)
        assert row, f"add to docs/metrics.md: {base}"
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert all(f"`{label}`" in row[0] for label in labels), f"labels of {base}: {labels}"
    assert all(f"`{stage}`" in text for stage in stages)


# --- generated parts and examples -----------------------------------------------------------------


def test_generated_parts_are_up_to_date() -> None:
    command = [sys.executable, "scripts/docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [path for path in PAGES if "```python test" in path.read_text("utf-8")], ids=name_of)
def test_examples_run(path: Path) -> None:
    for example in re.findall(r"^```python test\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(example, str(path), "exec"), {"__name__": "example"})
