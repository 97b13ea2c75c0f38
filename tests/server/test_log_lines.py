"""The log on stderr: as text, or an object on each line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from mlx_guarded_llm.logs import NAME, flush, get_logger
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.log_lines import set_up

from .conftest import Running

BODY = {"model": "paris", "messages": [{"role": "user", "content": "A secret question"}]}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    logger = logging.getLogger(NAME)
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_lines_of_json_have_the_ids(capsys: pytest.CaptureFixture[str], paris: Running) -> None:
    set_up(Settings(log_level="info", log_format="json"))
    reply = paris.client.post("/v1/chat/completions", json=BODY)
    paris.client.get("/nothing")
    flush(60)
    written = capsys.readouterr().err
    lines = [json.loads(line) for line in written.splitlines()]
    asked, nothing = [line for line in lines if line["logger"].endswith(".access")]
    assert asked["http_request_id"] == reply.headers["x-request-id"]
    assert asked["request_id"] == reply.headers["x-guard-request-id"]
    assert (asked["http_path"], asked["http_status"]) == ("/v1/chat/completions", 200)
    assert nothing["http_status"] == 404
    finished = next(line for line in lines if line.get("kind") == "request.finished")
    assert finished["request_id"] == reply.headers["x-guard-request-id"]
    assert finished["model"] == "paris" and finished["level"] == "info"
    assert "secret" not in written


def test_text_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(Settings(log_level="off"))
    get_logger("server").error("not seen")
    assert capsys.readouterr().err == ""
    set_up(Settings())
    get_logger("server").info("not seen")
    get_logger("server").warning("seen")
    assert capsys.readouterr().err.endswith("WARNING mlx_guarded_llm.server: seen\n")
