"""Requests as Open WebUI 0.12.4 sends them, with the models' names changed and most tools left out.

`make test-openwebui` runs Open WebUI itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeModel

from .conftest import ANSWER, Running, Serve

RECORDED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "open-webui-0.12.4.json").read_text()
)
HEADERS = {"accept": "*/*", "user-agent": "Python/3.11 aiohttp/3.14.5"}


@pytest.fixture
def paris(serve: Serve, scripted: MakeModel) -> Running:
    """With room for the tools that it sends with each question."""
    return serve(models={"paris": scripted(ANSWER, context_window=8192)})


@pytest.mark.parametrize("sent", RECORDED, ids=[sent["what"] for sent in RECORDED])
def test_a_request(paris: Running, sent: dict[str, Any]) -> None:
    body = sent["body"]
    reply = paris.client.request(sent["method"], sent["path"], json=body, headers=HEADERS)
    assert reply.status_code == 200, reply.text
    if body is None:
        (model,) = reply.json()["data"]
        assert model["id"] == "paris" and model["status"]["value"] == "unloaded"
    elif "messages" not in body:
        assert reply.json() == {"success": True}
    elif body["stream"]:
        lines = [line for line in reply.text.splitlines() if line.startswith("data: {")]
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
        text = "".join(delta.get("content") or "" for delta in deltas)
        assert text == ANSWER
    else:
        assert reply.json()["choices"][0]["message"]["content"] == ANSWER


def test_the_answer_that_is_continued(serve: Serve, tiny: MakeModel) -> None:
    """Its beginning is in the prompt, and nothing else is added."""
    running = serve(models={"noise": tiny(context_window=8192)})
    [sent] = [sent["body"] for sent in RECORDED if sent["what"] == "continue the answer"]
    body = {**sent, "model": "noise", "stream": False, "max_tokens": 8, "temperature": 0}
    choice = running.client.post("/v1/chat/completions", json=body).json()["choices"][0]
    options = {"max_tokens": 8, "temperature": 0.0, "tools": sent["tools"]}
    alone = running.backend.generate(
        "noise", sent["messages"], continue_final_message=True, **options
    )
    assert choice["message"]["content"] == alone.text
    assert alone.text != running.backend.generate("noise", sent["messages"], **options).text


def test_an_answer_either_begins_or_continues(paris: Running) -> None:
    ask = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The capital"}]
    for begins, continues in ((True, True), (False, False), (False, None)):
        body = {
            "model": "paris",
            "messages": ask,
            "add_generation_prompt": begins,
            "continue_final_message": continues,
        }
        error = paris.client.post("/v1/chat/completions", json=body).json()["error"]
        assert error["param"] == "add_generation_prompt" and "continue" in error["message"]
    answer = paris.client.post(
        "/v1/chat/completions",
        json={"model": "paris", "messages": ask, "add_generation_prompt": True},
    )
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
