"""A name means the same at every replica, as it would to one backend."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import httpx
import pytest

from mlx_guarded_llm.backend import BaseBackend

from .conftest import Deployed, chat

pytestmark = pytest.mark.timeout(300)


def test_two_names_of_one_folder_are_one_model(client: httpx.Client, backend: BaseBackend) -> None:
    for name in ("a", "also-a"):
        backend.unload(name)
    seen = {}
    for name in ("a", "also-a", "a"):
        answer = client.post("/v1/chat/completions", json=chat(name)).json()
        assert answer["guard"]["requested_model"] == name
        seen[name] = answer["guard"]["replica"]
    assert seen["a"] == seen["also-a"]
    (info,) = (one for one in backend.models() if one.name in seen)
    assert list(info.replicas) == [seen["a"]], "it was loaded once"
    for name in seen:
        shown = client.get(f"/v1/models/{name}").json()
        assert (shown["state"], shown["memory"]) == ("resident", info.memory_bytes)
    assert backend.unload("also-a")
    assert not backend.unload("a")


def test_a_load_with_options_holds_at_every_replica(
    backend: BaseBackend, deployed: Deployed
) -> None:
    info = backend.load("b", context_window=128)
    assert (info.name, info.context_window) == ("b", 128)
    answer = backend.generate("b", "hi", max_tokens=300)
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 128
    first = answer.guard.replica
    deployed.kill(first)
    again = backend.generate("b", "hi", max_tokens=300)
    assert again.guard.replica != first
    assert (again.guard.requested_model, again.guard.served_model) == ("b", "b")
    assert again.text == answer.text
    while backend.memory()[1] < 2 * 2**30:  # until another replica is there
        time.sleep(0.1)
    card = backend.card("b")
    assert card is not None
    assert card.context_window == 128
    plain = backend.generate("b[]", "hi", max_tokens=300)
    assert plain.guard.served_model == "b[]"
    assert plain.usage.completion_tokens == 300
    windows = {one.name: one.context_window for one in backend.models()}
    assert (windows["b"], windows["b[]"]) == (128, 2048)
    assert backend.unload("b")
    assert backend.unload("b")  # its meaning ended with the first, so this is the plain one
    card = backend.card("b")
    assert card is not None
    assert card.context_window == 2048


def test_what_each_replica_has_is_told(client: httpx.Client, backend: BaseBackend) -> None:
    info = backend.load("c", pin=True)
    (replica,) = info.replicas
    assert info.replicas[replica].pinned
    listed = {one.name: one for one in backend.models()}
    assert listed["c"].places == [f"{replica} (resident, pinned)"]
    assert client.get("/v1/models/c").json()["replicas"] == {replica: ["resident", "pinned"]}
    page = client.get("/", headers={"accept": "text/html"}).text
    assert f"at {replica} (resident, pinned)" in page
    assert backend.unpin("c")
    listed = {one.name: one for one in backend.models()}
    assert listed["c"].places == [f"{replica} (resident)"]
    assert backend.unload("c")


@contextmanager
def changes(client: httpx.Client) -> Iterator[SimpleQueue[dict[str, Any]]]:
    """What `/models/sse` tells."""
    seen: SimpleQueue[dict[str, Any]] = SimpleQueue()
    over = threading.Event()
    with client.stream("GET", "/models/sse") as reply:

        def read() -> None:
            for line in reply.iter_lines():
                if over.is_set():
                    return
                if line.startswith("data: "):
                    seen.put(json.loads(line.removeprefix("data: ")))

        reader = threading.Thread(target=read)
        reader.start()
        yield seen
        over.set()
        client.post("/models/load", json={"model": "a"})  # which is told, and ends the reader
        client.post("/models/unload", json={"model": "a"})
        reader.join(60)
        assert not reader.is_alive()


def test_how_far_a_load_is(client: httpx.Client) -> None:
    with changes(client) as seen:
        told: list[dict[str, Any]] = []
        while not told:
            for what in ("load", "unload"):
                reply = client.post(f"/models/{what}", json={"model": "slow"})
                assert reply.status_code == 200, reply.text
            while not seen.empty():
                one = seen.get()
                if one["model"] == "slow" and "progress" in one["data"]:
                    told.append(one["data"])
    for data in told:
        assert data["status"] == "loading"
        assert data["progress"]["current"] in data["progress"]["stages"]
        assert 0 <= data["progress"]["value"] <= 1
