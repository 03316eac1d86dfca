"""Which engine and which parts the settings select."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from echosight.engines import LLM, STT
from echosight.engines.cascade.engine import Cascade
from echosight.engines.cascade.fallback import LLMChain, STTChain, TTSChain
from echosight.engines.cascade_parts import LLMS, STTS, TTSS, PartRegistry
from echosight.engines.llm.echo import EchoLLM
from echosight.engines.registry import load
from echosight.errors import SetupError
from echosight.settings import Settings

ROOT = Path(__file__).parents[2]
KEY = SecretStr("sesame")


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the keys, URLs, models and `.env` of the user who runs the tests."""
    monkeypatch.chdir(tmp_path)
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that count as installed: their factories return names instead of parts."""
    names: set[str] = set()

    def module(path: str) -> Any:
        name = path.removeprefix("echosight.engines.")

        def create(argument: str | None, settings: Settings) -> Any:
            if name not in names:
                raise SetupError(f"{name} is not installed")
            return SimpleNamespace(name=f"{name}({argument or ''})", rate=1, voices=(), languages=())

        return SimpleNamespace(
            **dict.fromkeys(("make_llm", "make_stt", "make_tts", "openai", "groq", "deepseek"), create)
        )

    monkeypatch.setattr("echosight.engines.cascade_parts.import_module", module)
    return names


def named(part: Any) -> list[str]:
    return [one.name for one in getattr(part, "parts", [part])]


# --- which engine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [None, "echo"])
def test_without_a_name_it_is_the_built_in_engine(model: str | None) -> None:
    engine = load(Settings(model=model))
    assert isinstance(engine, Cascade)
    assert isinstance(engine.llm, EchoLLM)
    assert named(engine.stt) == ["whisper tiny.en", "pocketsphinx"]
    assert named(engine.tts) == ["hibari", "espeak-ng"]


def test_without_the_embedded_weights_the_built_in_engine_has_its_smaller_parts(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echosight.engines.registry.embedded_folder", lambda name: None)
    installed |= {"stt.whisper", "stt.sphinx", "tts.kokoro", "tts.espeak", "llm.echo"}
    engine = load(Settings())
    assert isinstance(engine, Cascade)
    assert named(engine.stt) == ["stt.sphinx()"]
    assert named(engine.tts) == ["tts.espeak()"]


def test_the_built_in_engine_may_have_another_stt_and_tts() -> None:
    engine = load(Settings(stt="openai:tiny", tts="espeak:de", whisper_url="http://localhost:1/v1"))
    assert isinstance(engine, Cascade)
    assert (engine.stt.name, engine.tts.name) == ("tiny at localhost:1", "espeak-ng")


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("openai:gpt-4o", ["llm.openai_http(gpt-4o)"]),
        ("groq", ["llm.openai_http()"]),
        ("tiny.gguf", ["llm.llama_cpp(tiny.gguf)"]),
        ("tiny.gguf, deepseek:chat", ["llm.llama_cpp(tiny.gguf)", "llm.openai_http(chat)"]),
        ("a,b.gguf", ["llm.llama_cpp(a,b.gguf)"]),
        ("folder", ["llm.transformers.chat(folder)"]),
        ("folder,groq", ["llm.transformers.chat(folder)", "llm.openai_http()"]),
    ],
)
def test_names_files_and_folders_are_llms(installed: set[str], tmp_path: Path, model: str, parts: list[str]) -> None:
    installed |= {"llm.openai_http", "llm.llama_cpp", "llm.transformers.chat", "stt.sphinx", "tts.espeak"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "a,b.gguf").touch()
    engine = load(Settings(model=model))
    assert isinstance(engine, Cascade)
    assert named(engine.llm) == parts
    assert isinstance(engine.llm, LLMChain) == (len(parts) > 1)


def test_the_variable_tts_provider_names_a_tts_too(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed |= {"llm.openai_http", "tts.kokoro", "tts.piper", "stt.sphinx"}
    monkeypatch.setenv("TTS_PROVIDER", "Piper")
    for model in ("openai:gpt-4o", "groq"):
        engine = load(Settings(model=model))
        assert isinstance(engine, Cascade)
        assert named(engine.tts) == ["tts.piper()"]


def test_urls_are_llms() -> None:
    engine = load(Settings(model="http://localhost:8000/v1,http://localhost:8001/v1#two", stt="sphinx", tts="espeak"))
    assert isinstance(engine, Cascade)
    assert named(engine.llm) == ["localhost:8000", "two at localhost:8001"]


def test_the_variable_llama_model_path_names_a_model_too(installed: set[str]) -> None:
    installed |= {"llm.llama_cpp", "stt.sphinx", "tts.espeak"}
    engine = load(Settings(llama_model_path="tiny.gguf"))
    assert isinstance(engine, Cascade)
    assert named(engine.llm) == ["llm.llama_cpp(tiny.gguf)"]


def test_the_config_of_an_id_is_downloaded(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed |= {"llm.transformers.chat", "stt.sphinx", "tts.espeak"}
    downloads: list[tuple[str, str]] = []

    def download(source: str, file: str) -> str:
        downloads.append((source, file))
        (tmp_path / file).write_text('{"model_type": "qwen2"}')
        return str(tmp_path / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    engine = load(Settings(model="Qwen/Qwen2.5-7B-Instruct"))
    assert isinstance(engine, Cascade)
    assert named(engine.llm) == ["llm.transformers.chat(Qwen/Qwen2.5-7B-Instruct)"]
    assert downloads == [("Qwen/Qwen2.5-7B-Instruct", "config.json")]


def test_omni_models_are_engines_by_themselves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []

    def load_minicpmo(source: str, *, stt: STT | None) -> Any:
        calls.append((source, stt.name if stt else "none"))
        return calls

    monkeypatch.setattr("echosight.engines.minicpmo.engine.load", load_minicpmo)
    (tmp_path / "config.json").write_text('{"model_type": "minicpmo"}')
    assert load(Settings(model=str(tmp_path))) is calls  # type: ignore[comparison-overlap]
    load(Settings(model=str(tmp_path), stt="sphinx"))
    assert calls == [(str(tmp_path), "none"), (str(tmp_path), "pocketsphinx")]


# --- which parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "packages", "expected"),
    [
        (STTS, {"stt.whisper", "stt.vosk", "stt.sphinx"}, "stt.whisper()"),
        (STTS, {"stt.vosk", "stt.sphinx"}, "stt.vosk()"),
        (STTS, {"stt.sphinx", "stt.openai_http", "stt.deepgram"}, "stt.sphinx()"),
        (TTSS, {"tts.kokoro", "tts.piper", "tts.espeak"}, "tts.kokoro()"),
        (TTSS, {"tts.piper", "tts.espeak"}, "tts.piper()"),
        (TTSS, {"tts.espeak", "tts.openai_http", "tts.deepgram"}, "tts.espeak()"),
    ],
)
def test_the_first_that_is_installed_is_taken_and_logged(
    installed: set[str],
    caplog: pytest.LogCaptureFixture,
    registry: PartRegistry[Any],
    packages: set[str],
    expected: str,
) -> None:
    installed |= packages
    with caplog.at_level("INFO"):
        assert registry.choose("", Settings()).name == expected
    message = f"{registry.flag.removeprefix('--')}: {expected}"
    # The built-in one takes over where the weights of the first are missing.
    builtin = f"{expected.partition('.')[0]}.{registry.builtin}()"
    assert caplog.messages == [message if expected == builtin else f"{message}, then {builtin}"]


def test_a_url_puts_its_server_first(installed: set[str]) -> None:
    installed |= {"stt.openai_http", "tts.openai_http", "stt.whisper", "tts.kokoro", "stt.sphinx", "tts.espeak"}
    settings = Settings(whisper_url="http://w", tts_api_url="http://t")
    assert STTS.choose("", settings).name == "stt.openai_http()"
    assert TTSS.choose("", settings).name == "tts.openai_http()"


def test_several_names_are_a_chain_in_that_order(installed: set[str]) -> None:
    installed |= {"stt.whisper", "stt.deepgram", "tts.deepgram", "stt.sphinx"}
    chain = STTS.choose("whisper:small, deepgram,sphinx", Settings())
    assert isinstance(chain, STTChain)
    assert named(chain) == ["stt.whisper(small)", "stt.deepgram()", "stt.sphinx()"]


def test_the_cloud_takes_over_where_it_may_and_then_the_built_in_part(installed: set[str]) -> None:
    installed |= {
        "stt.whisper",
        "stt.deepgram",
        "tts.deepgram",
        "stt.sphinx",
        "tts.kokoro",
        "tts.espeak",
        "llm.openai_http",
        "llm.llama_cpp",
    }
    settings = Settings(enable_cloud_fallback=True, model="tiny.gguf")
    stt, tts = STTS.choose("", settings), TTSS.choose("kokoro", settings)
    assert named(stt) == ["stt.whisper()", "stt.deepgram()", "stt.sphinx()"]
    assert named(tts) == ["tts.kokoro()", "tts.deepgram()", "tts.espeak()"]
    assert isinstance(tts, TTSChain)
    engine = load(settings)
    assert isinstance(engine, Cascade)
    assert named(engine.llm) == ["llm.llama_cpp(tiny.gguf)", "llm.openai_http()", "llm.llama_cpp()"]
    assert named(STTS.choose("whisper", Settings(enable_cloud_fallback=False))) == ["stt.whisper()"]


def test_only_services_with_a_key_take_over() -> None:
    settings = Settings(enable_cloud_fallback=True, deepgram_api_key=KEY, deepseek_api_key=KEY, stt="sphinx")
    assert named(STTS.choose("sphinx", settings)) == ["pocketsphinx", "nova-3 at api.deepgram.com"]
    llms: list[LLM] = [LLMS.create("echo", settings)]
    assert named(LLMS.with_fallbacks(llms, settings, ["echo"])) == [
        "EchoSight demo",
        "deepseek-chat at api.deepseek.com",
    ]


# --- what is wrong --------------------------------------------------------------------------------


def wrong(**kwargs: Any) -> Callable[[], Settings]:
    return lambda: Settings(**kwargs)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (wrong(model="./nowhere"), r"There is no folder \./nowhere; --model takes a folder, a \.gguf file"),
        (wrong(model="nonsense"), "There is no folder nonsense"),
        (wrong(model="empty"), "empty holds no readable config.json, so it is no model folder"),
        (wrong(model="notes.txt"), r"notes\.txt is not a model; --model takes a folder"),
        (wrong(model="none.gguf"), r"There is no file none\.gguf"),
        (wrong(model="http://"), "http:// is no address; give one such as http://localhost:8000/v1"),
        (wrong(model="deepseek"), "set DEEPSEEK_API_KEY"),
        (wrong(stt="ears"), "--stt ears is not known; choose one of whisper, vosk, sphinx, openai, groq, deepgram"),
        (wrong(tts="mouth:x"), "--tts mouth is not known; choose one of kokoro, piper, hibari, vits"),
        (wrong(stt="deepgram"), "set DEEPGRAM_API_KEY"),
        (wrong(tts="openai"), "set TTS_API_URL, or OPENAI_API_KEY"),
        (wrong(stt="openai", whisper_url="localhost:1"), "localhost:1.* is no address"),
    ],
)
def test_a_wrong_setting_is_a_setup_error_of_one_line(
    settings: Callable[[], Settings], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SetupError, match=sentence) as refused:
        load(settings())
    assert "\n" not in refused.value.message


def test_an_id_needs_a_package_and_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SetupError, match=r"uv run --extra local model_server\.py --model owner/name"):
        load(Settings(model="owner/name"))

    def fail(source: str, file: str) -> str:
        raise OSError("no network\nand more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=fail))
    with pytest.raises(SetupError, match=r"owner/name is no folder here, and it could not be downloaded: no network$"):
        load(Settings(model="owner/name"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> Any:
        raise ModuleNotFoundError("gone", name="vosk")

    monkeypatch.setattr("echosight.engines.cascade_parts.import_module", fail)
    with pytest.raises(SetupError, match="--stt vosk needs the package vosk: uv pip install vosk"):
        STTS.create("vosk", Settings())


def test_the_program_exits_at_once(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "model_server.py"), "--model", "./nowhere"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("model_server.py: There is no folder ./nowhere; ")
    assert len(ended.stderr.splitlines()) == 1


# --- while it loads -------------------------------------------------------------------------------


async def test_the_parts_that_are_loading_are_named() -> None:
    gate = asyncio.Event()

    class Slow(EchoLLM):
        name = "slow"

        async def start(self) -> None:
            await gate.wait()
            await super().start()

    class Quick(EchoLLM):
        name = "quick"

    quick: Any = Quick()
    quick.rate, quick.voices = 1, ()
    engine = Cascade(quick, Slow(), quick)
    starting = asyncio.create_task(engine.start())
    while engine.loading != "slow":
        await asyncio.sleep(0)
    gate.set()
    await starting
    assert engine.loading == ""
    await engine.close()


@pytest.mark.parametrize("config", ["[]", "3", "null"])
def test_config_files_of_any_kind_are_read(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(SetupError):
        load(Settings(model=str(tmp_path), stt="nobody"))
