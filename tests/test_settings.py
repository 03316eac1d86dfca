from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from echosight.options import SessionOptions
from echosight.settings import Settings
from model_server import public_address

VARIABLES = ("MODEL_ID", "API_TOKENS", "RECORD", "LOG_DIR", "SERVER_NAME", "SERVER_HOST", "SERVER_PORT", "SERVER_VOICE")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of the developer who runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_are_those_of_the_readme() -> None:
    settings = Settings.load([])
    assert (settings.host, settings.port, settings.model, settings.record) == ("127.0.0.1", 32550, None, False)
    assert settings.session_options() == SessionOptions()
    assert settings.log_dir == Path("log_data")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("0.0.0.0", "http://localhost:32550"),
        ("::1", "http://[::1]:32550"),
        ("192.168.1.5", "http://192.168.1.5:32550"),
    ],
)
def test_the_address_that_is_printed_can_be_opened(host: str, address: str) -> None:
    assert public_address(Settings(host=host))[0] == address


def test_a_flag_overrides_a_variable_and_that_overrides_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("SERVER_PORT=1001\nSERVER_NAME=from file\nMODEL_ID=file\nUNRELATED=1\n")
    monkeypatch.setenv("SERVER_PORT", "1002")
    monkeypatch.setenv("SERVER_NAME", "from environment")
    settings = Settings.load(["--port", "1003"])
    assert (settings.port, settings.server_name, settings.model) == (1003, "from environment", "file")


def test_tokens_open_the_server_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKENS", " sesame, two ,")
    settings = Settings.load([])
    assert settings.host == "0.0.0.0"
    assert [settings.accepts_token(token) for token in ("sesame", "two", "three", "", None)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert Settings.load(["--host", "127.0.0.1"]).host == "127.0.0.1"
    assert "sesame" not in repr(settings)


def test_without_tokens_every_client_is_accepted() -> None:
    assert Settings.load([]).accepts_token(None)


def test_unrelated_variables_of_the_shell_have_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "x86_64", "PORT": "1", "LANGUAGE": "en_US", "VOICE": "x", "MODEL": "pc105"}.items():
        monkeypatch.setenv(name, value)
    assert Settings.load([]) == Settings.load([])
    settings = Settings.load([])
    assert (settings.host, settings.port, settings.language, settings.voice) == ("127.0.0.1", 32550, None, None)
    assert settings.model is None


def test_turn_settings_reach_the_session() -> None:
    argv = ["--silence-ms", "500", "--vad-threshold", "1", "--max-turn-s", "9", "--system-prompt", "Be brief"]
    options = Settings.load([*argv, "--voice", "en-gb", "--language", "en"]).session_options()
    assert options.turn_detection is not None
    assert (
        options.turn_detection.min_endpointing_delay_ms,
        options.turn_detection.threshold,
        options.turn_detection.max_turn_ms,
    ) == (500, 1.0, 9000)
    assert (options.instructions, options.response.voice, options.language) == ("Be brief", "en-gb", "en")


@pytest.mark.parametrize(
    ("argv", "variable", "sentence"),
    [
        (["--port", "99999"], "", "--port (SERVER_PORT): Input should be less than or equal to 65535"),
        ([], "soon", "--port (SERVER_PORT): Input should be a valid integer"),
        (["--log-level", "loud"], "", "--log-level (SERVER_LOG_LEVEL): Input should be 'debug'"),
        (["--prot", "1"], "", "unrecognized arguments: --prot"),
        (["--port"], "", "expected one argument"),
    ],
)
def test_an_invalid_value_ends_the_program_with_one_sentence(
    argv: list[str],
    variable: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SERVER_PORT", variable)
    with pytest.raises(SystemExit) as ended:
        Settings.load(argv)
    output = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in output
    assert "Traceback" not in output


def test_help_names_flag_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Settings.load(["--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "--port PORT port to listen on (0: any free one) [SERVER_PORT, default 32550]" in output
    assert "--record, --no-record" in output
    assert "[MODEL_ID]" in output
    assert "--api-tokens" not in output


def test_settings_cannot_be_changed() -> None:
    settings = Settings(port=0)
    with pytest.raises(ValidationError):
        settings.port = 1
