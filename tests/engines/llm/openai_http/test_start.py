"""Starting an OpenAI-compatible LLM: models and keys."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from echosight.engines.llm.openai_http import OpenAILLM, from_url, groq, openai
from echosight.engines.runtime.http_client import HttpService, key_for
from echosight.errors import SetupError
from echosight.settings import Settings
from tests.engines.llm.openai_http.rig import CHAT, ask, text_of
from tests.engines.upstream import Server, answer, body


@pytest.mark.parametrize(
    ("models", "model", "sentence"),
    [
        (
            answer({"error": {"message": "bad key"}}, 401),
            "tiny",
            "authentication failed; check the API key .401.: bad key; set OPENAI",
        ),
        (answer({}, 404), None, "name a model: --model http"),
        (answer({"data": []}), None, "lists no models; name one"),
        (answer([]), None, "it lists no models"),
        (body(b"<html>"), None, "not JSON"),
    ],
)
async def test_an_unusable_server_is_reported_at_start(
    server: Server, models: Any, model: str | None, sentence: str
) -> None:
    server.on("/v1/models", models)
    llm = OpenAILLM(HttpService(f"{server.url}/v1"), model)
    with pytest.raises(SetupError, match=sentence):
        await llm.start()
    await llm.close()


async def test_a_server_without_a_model_list_may_still_have_the_model(server: Server) -> None:
    server.on("/v1/models", answer({}, 404))
    llm = from_url(f"{server.url}/v1#mine", Settings(model=None))
    await llm.start()
    assert text_of(await ask(llm)) == "Hello."
    assert server.requests_to(CHAT)[0].json["model"] == "mine"
    await llm.close()


def test_keys_are_sent_to_their_own_service_only() -> None:
    settings = Settings(
        openai_api_key=SecretStr("o"),
        groq_api_key=SecretStr("g"),
        tts_api_key=SecretStr("t"),
        tts_api_url="http://voice:1/v1/audio/speech",
    )
    assert key_for("https://api.openai.com/v1", settings) == "o"
    assert key_for("https://api.groq.com/openai/v1", settings) == "g"
    assert key_for("http://voice:1/v1", settings) == "t"
    assert key_for("http://api.openai.com/v1", settings) is None
    assert key_for("https://elsewhere.example/v1", settings) is None


def test_hosted_llms_need_their_keys() -> None:
    for make, variable in ((openai, "OPENAI_API_KEY"), (groq, "GROQ_API_KEY")):
        with pytest.raises(SetupError, match=variable):
            make(None, Settings(openai_api_key=None, groq_api_key=None))
    with pytest.raises(SetupError, match="is no address"):
        from_url("http://", Settings())


async def test_the_key_is_sent(server: Server) -> None:
    settings = Settings(openai_api_base=f"{server.url}/v1", openai_api_key=SecretStr("sesame"))
    llm = openai("tiny", settings)
    await llm.start()
    await ask(llm)
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sesame"}
    await llm.close()
