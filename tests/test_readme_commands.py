from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "readme_commands.py"
SERVER = """```sh run server
echo $$ > pid
exec python3 -m http.server "$PORT" --bind 127.0.0.1
```
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run(folder: Path, readme: str, port: int, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "README.md").write_text(readme)
    command = [sys.executable, str(SCRIPT), str(folder / "README.md"), "--port", str(port), *options]
    env = {**os.environ, "PORT": str(port)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_only_marked_blocks_are_run_in_order(tmp_path: Path, port: int) -> None:
    readme = """# Thing
```sh
touch not-run
```
```sh run
echo one > output
```
~~~sh run
touch not-run
~~~
``` sh run
echo two >> output
```
"""
    result = run(tmp_path, readme, port)
    assert result.returncode == 0, result.stderr
    assert "2 blocks ran" in result.stdout
    assert (tmp_path / "output").read_text() == "one\ntwo\n"
    assert not (tmp_path / "not-run").exists()


def test_a_server_runs_for_the_blocks_after_it_and_stops_at_the_end(tmp_path: Path, port: int) -> None:
    (tmp_path / "health").write_text("OK")
    client = f"""```sh run
python3 -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:{port}/health").read())' > output
```
"""
    result = run(tmp_path, SERVER + client + SERVER, port)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "output").read_text() == "b'OK'\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("readme", "options", "reason"),
    [
        ("```sh run\ntrue\nfalse\ntrue\n```\n", (), "the commands of line 1 ended with status 1"),
        (
            "\n```sh run\nread -r < <(sleep 30)\n```\n",
            ("--limit-s", "0.2"),
            "the commands of line 2 took more than 0.2 s",
        ),
        ("```sh run server\necho out of order; exit 3\n```\n", (), "out of order"),
        ("```sh\ntrue\n```\n", (), "no block"),
    ],
)
def test_failures_are_reported(tmp_path: Path, port: int, readme: str, options: tuple[str, ...], reason: str) -> None:
    result = run(tmp_path, readme, port, *options)
    assert result.returncode == 1
    assert reason in result.stderr
