"""Who may ask, and what a page of another site may not."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.security import Gate
from tests.conftest import MakeModel

from .conftest import ANSWER, Running, Serve

KEYS = {"alice": {"key": "a-secret"}, "bob": {"key": "b-secret", "models": ["paris"]}}


def names(reply: httpx.Response) -> list[str]:
    return [model["id"] for model in reply.json()["data"]]


@pytest.fixture
def locked(serve: Serve, scripted: MakeModel) -> Running:
    return serve(models={"paris": scripted(ANSWER), "rome": scripted("Rome.")}, keys=KEYS)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "x"}])
def test_without_a_key_nothing_is_told(locked: Running, headers: dict[str, str]) -> None:
    reply = locked.client.get("/v1/models", headers=headers)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert "paris" not in reply.text
    assert locked.client.get("/nothing", headers=headers).status_code == 401
    assert locked.client.get("/health").status_code == 200


def test_a_key_in_either_header(locked: Running) -> None:
    for headers in ({"authorization": "bearer a-secret"}, {"x-api-key": "a-secret"}):
        assert names(locked.client.get("/v1/models", headers=headers)) == ["paris", "rome"]


def test_a_key_of_some_models(locked: Running) -> None:
    headers = {"x-api-key": "b-secret"}
    assert names(locked.client.get("/v1/models", headers=headers)) == ["paris"]
    refused = locked.client.get("/v1/models/rome", headers=headers)
    assert refused.status_code == 404 and "There are: paris." in refused.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example"])
def test_a_rebound_name(paris: Running, host: str) -> None:
    reply = paris.client.get("/v1/models", headers={"host": host})
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:80", "192.168.1.4:8080"])
def test_a_name_that_cannot_be_rebound(paris: Running, host: str) -> None:
    assert paris.client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_site(paris: Running, headers: dict[str, str]) -> None:
    reply = paris.client.get("/v1/models", headers=headers)
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in reply.headers


def test_a_page_of_its_own_and_one_that_is_allowed(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER)}, allowed_origins=["http://app.test"])
    own = running.client.get("/v1/models", headers={"origin": running.url})
    assert own.status_code == 200
    allowed = running.client.get("/v1/models", headers={"origin": "http://app.test"})
    assert allowed.headers["access-control-allow-origin"] == "http://app.test"


def test_an_open_address_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no key"):
        Gate(Settings(host="0.0.0.0"))
    file = tmp_path / "keys"
    file.write_text("# people\nalice a-secret\nbob b-secret paris,rome\n")
    assert Gate(Settings(host="0.0.0.0", key_file=file)).needs_key
    file.write_text("alice\n")
    with pytest.raises(InvalidRequest, match="line 1"):
        Gate(Settings(host="0.0.0.0", key_file=file))


def test_what_is_not_there_has_the_shape_of_the_api(paris: Running) -> None:
    for reply, code in (
        (paris.client.get("/v1/nothing"), 404),
        (paris.client.post("/v1/models"), 405),
    ):
        assert reply.status_code == code
        assert reply.json()["error"]["message"]
