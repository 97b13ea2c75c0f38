"""llama.cpp's router API, as Open WebUI drives it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest

from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER, Running, Serve


@pytest.fixture
def two(serve: Serve, scripted: MakeModel) -> Running:
    return serve(models={"paris": scripted(ANSWER), "rome": scripted("Rome.")})


def values(running: Running) -> dict[str, str]:
    listed = running.client.get("/models").json()
    assert listed["object"] == "list"
    return {model["id"]: model["status"]["value"] for model in listed["data"]}


def post(running: Running, what: str, model: str) -> Any:
    return running.client.post(f"/models/{what}", json={"model": model})


@contextmanager
def watched(running: Running) -> Iterator[SimpleQueue[dict[str, Any]]]:
    """The changes, as they come."""
    seen: SimpleQueue[dict[str, Any]] = SimpleQueue()
    with running.client.stream("GET", "/models/sse") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.iter_lines()

        def read() -> None:
            for line in lines:
                if line.startswith("data: "):
                    seen.put(json.loads(line.removeprefix("data: ")))

        reader = threading.Thread(target=read)
        reader.start()
        yield seen
        running.server.should_exit = True  # which ends the stream
        reader.join(60)
        assert not reader.is_alive()


def test_loading_and_unloading(two: Running) -> None:
    assert values(two) == {"paris": "unloaded", "rome": "unloaded"}
    reply = post(two, "load", "paris")
    assert (reply.status_code, reply.json()) == (200, {"success": True})
    assert values(two) == {"paris": "loaded", "rome": "unloaded"}
    assert post(two, "load", "paris").json() == {"success": True}  # once more is no fault
    assert post(two, "unload", "paris").json() == {"success": True}
    assert values(two) == {"paris": "unloaded", "rome": "unloaded"}
    assert post(two, "unload", "paris").json() == {"success": True}


def test_the_list_has_what_clients_read(two: Running) -> None:
    post(two, "load", "rome")
    model = two.client.get("/models").json()["data"][1]
    assert model["id"] == "rome" and model["object"] == "model"
    assert model["status"] == {"value": "loaded", "args": []}
    assert model["architecture"]["input_modalities"] == ["text"]
    assert model["can_remove"] is False


def test_openais_list_tells_the_states_too(two: Running) -> None:
    """From it Open WebUI takes what it shows beside a name; without it all would be loaded."""
    post(two, "load", "rome")
    listed = two.client.get("/v1/models").json()
    assert [model["status"]["value"] for model in listed["data"]] == ["unloaded", "loaded"]
    assert listed == two.client.get("/models").json()


def test_a_load_is_seen_from_the_moment_it_is_asked_for(
    serve: Serve, scripted: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while an engine is started or files are fetched, of which the backend says nothing."""
    running = serve(models={"paris": scripted(ANSWER)}, early_errors=0)
    aload, go = running.backend.aload, threading.Event()

    async def held(*arguments: Any, **options: Any) -> None:
        await asyncio.to_thread(go.wait)
        await aload(*arguments, **options)

    monkeypatch.setattr(running.backend, "aload", held)
    assert post(running, "load", "paris").json() == {"success": True}
    assert values(running) == {"paris": "loading"}
    go.set()
    until(lambda: values(running) == {"paris": "loaded"})


def test_pinning(two: Running) -> None:
    assert post(two, "pin", "paris").json() == {"success": True}
    (info,) = two.backend.models()
    assert info.pinned and info.state == "resident"
    assert post(two, "unpin", "paris").json() == {"success": True, "was_pinned": True}
    assert post(two, "unpin", "paris").json() == {"success": True, "was_pinned": False}
    (info,) = two.backend.models()
    assert not info.pinned


def test_the_changes_are_told(two: Running) -> None:
    with watched(two) as changes:
        while True:  # until the stream knows what the states were at first
            post(two, "load", "paris")
            post(two, "unload", "paris")
            if not changes.empty():
                break
        found = [changes.get(timeout=60)]
        while found[-1]["data"]["status"] != "loaded":
            if changes.empty():
                post(two, "load", "paris")
            found.append(changes.get(timeout=60))
        post(two, "unload", "paris")
        while found[-1]["data"]["status"] != "unloaded":
            found.append(changes.get(timeout=60))
    assert {one["model"] for one in found} == {"paris"}
    assert {one["event"] for one in found} == {"status_change"}
    assert found[-1]["data"]["exit_code"] == 0
    progress = [one["data"]["progress"] for one in found if "progress" in one["data"]]
    assert progress
    for one in progress:
        assert one["current"] in one["stages"] and 0 <= one["value"] <= 1


def test_a_load_for_a_request_is_told_too(two: Running) -> None:
    ask = {"model": "rome", "messages": [{"role": "user", "content": "Hi"}]}
    with watched(two) as changes:
        found: list[Any] = []
        while not any("progress" in one["data"] for one in found):
            two.client.post("/v1/chat/completions", json=ask).raise_for_status()
            two.backend.unload("rome")
            while not changes.empty():
                found.append(changes.get())
    assert {one["model"] for one in found} == {"rome"}


def test_a_load_is_told_under_each_name_of_the_model(serve: Serve, scripted: MakeModel) -> None:
    folder = scripted(ANSWER)
    running = serve(models={"paris": folder, "lutetia": folder, "rome": scripted("Rome.")})
    with watched(running) as changes:
        seen: set[str] = set()
        while len(seen) < 2:
            post(running, "load", "paris")
            post(running, "unload", "lutetia")
            while not changes.empty():
                one = changes.get()
                if "progress" in one["data"]:
                    seen.add(one["model"])
    assert seen == {"paris", "lutetia"}


@pytest.mark.parametrize("what", ["load", "unload", "pin", "unpin"])
def test_only_what_the_settings_name(two: Running, what: str, scripted: MakeModel) -> None:
    for name in ("smollm2-135m", scripted(ANSWER), "../paris", "paris[kv_bits=8]"):
        reply = post(two, what, name)
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "model_not_found"
    assert two.backend.models() == []
    assert two.client.post(f"/models/{what}", json={}).status_code == 400


def test_nothing_is_downloaded_or_deleted(two: Running) -> None:
    for reply in (
        two.client.post("/models", json={"model": "smollm2-135m"}),
        two.client.delete("/models", params={"model": "paris"}),
    ):
        assert reply.status_code == 403
        assert "neither downloaded nor deleted" in reply.json()["error"]["message"]


def test_what_cannot_be_loaded_says_why(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER)}, options={"memory_budget": 1000})
    reply = post(running, "load", "paris")
    assert reply.status_code == 507
    assert reply.json()["error"]["code"] == "insufficient_memory"
    (model,) = running.client.get("/models").json()["data"]
    status = model["status"]
    assert (status["value"], status["failed"], status["exit_code"]) == ("unloaded", True, 1)
    assert status["error"]


def test_a_key_that_may_not(serve: Serve, scripted: MakeModel) -> None:
    running = serve(
        models={"paris": scripted(ANSWER), "rome": scripted("Rome.")},
        keys={
            "root": {"key": "r", "admin": True},
            "alice": {"key": "a"},
            "bob": {"key": "b", "models": ["rome"], "admin": True},
        },
    )
    for key, status in (("a", 403), ("b", 404), ("r", 200), ("", 401)):
        running.client.headers["x-api-key"] = key
        assert post(running, "load", "paris").status_code == status
    running.client.headers["x-api-key"] = "b"
    assert values(running) == {"rome": "unloaded"}
