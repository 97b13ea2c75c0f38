"""The OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator
from starlette.routing import Route

from mlx_guarded_llm.server.app import APIS

from .conftest import Running


def test_it_describes_every_path(paris: Running) -> None:
    document = paris.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes = [route for api in APIS for route in api.routes if isinstance(route, Route)]
    paths = {route.path.replace(":path}", "}") for route in routes}
    assert paths == set(document["paths"])
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert {"200", "400", "404", "429"} <= set(operation["responses"])


def test_it_describes_what_an_address_may_have(paris: Running) -> None:
    paths = paris.client.get("/openapi.json").json()["paths"]
    listing = paths["/v1/responses/{id}/input_items"]["get"]["parameters"]
    assert {(part["name"], part["in"]) for part in listing} == {
        ("id", "path"),
        ("limit", "query"),
        ("order", "query"),
        ("after", "query"),
    }
    assert set(paths["/v1/responses/{id}"]) >= {"get", "delete"}
    assert "parameters" in paths["/v1/responses/{id}"]["delete"]


def test_what_its_schemas_refuse_the_server_refuses(paris: Running) -> None:
    document = paris.client.get("/openapi.json").json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    name = reference.rpartition("/")[2]
    text = json.dumps(document["components"]["schemas"]).replace("#/components/schemas", "#/$defs")
    schemas = json.loads(text)
    validator = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schemas})
    good = {"model": "paris", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    assert validator.is_valid(good)
    assert paris.client.post("/v1/chat/completions", json=good).status_code == 200
    bad: list[dict[str, Any]] = [
        {"n": 0},
        {"messages": []},
        {"stop": 3},
        {"junk": 1},
        {"tool_choice": "any"},
    ]
    for wrong in bad:
        assert not validator.is_valid(good | wrong)
        assert paris.client.post("/v1/chat/completions", json=good | wrong).status_code == 400
