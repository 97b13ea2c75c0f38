"""Health and readiness, with a real worker that is killed, and one that hangs."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend.programs import Claim, Programs
from tests.conftest import MakeModel

from .conftest import ANSWER, Running, Serve

BODY = {"model": "paris", "messages": [{"role": "user", "content": "Where?"}]}


def health(running: Running) -> tuple[int, dict[str, Any]]:
    reply = running.client.get("/health")
    return reply.status_code, reply.json()


def test_from_the_first_request_on(paris: Running) -> None:
    status, told = health(paris)
    assert (status, told["status"], told["engine"]) == (200, "ok", "idle")
    assert told["oldest_waiting_seconds"] == 0 and told["engine_deaths"] == 0
    assert paris.client.get("/ready").json() == {"status": "ready"}
    paris.client.post("/v1/chat/completions", json=BODY)
    status, told = health(paris)
    assert (status, told["engine"], told["running"]) == (200, "working", 0)
    paris.backend.close()
    status, told = health(paris)
    assert (status, told["status"]) == (503, "closed")
    assert paris.client.get("/ready").status_code == 503


def test_one_that_decides_nothing_is_stuck(paris: Running) -> None:
    held = threading.Event()
    paris.backend._dispatcher.call(lambda: held.wait(60))
    status, told = health(paris)
    assert (status, told["status"]) == (503, "stuck")
    assert paris.client.get("/ready").status_code == 503
    held.set()
    assert health(paris)[0] == 200


@pytest.mark.parametrize("isolation", ["process"])
@pytest.mark.parametrize("own_worker", [True])
def test_a_killed_worker_is_told_of(serve: Serve, scripted: MakeModel) -> None:
    running = serve(models={"paris": scripted(ANSWER)})
    running.backend.load("paris")
    assert running.backend.worker_pid is not None
    os.kill(running.backend.worker_pid, signal.SIGKILL)
    while (told := health(running)[1])["engine_deaths"] == 0:
        assert told["status"] in ("ok", "recovering")
    assert "SIGKILL" in told["last_death"]["cause"]
    assert told["last_death"]["seconds_ago"] >= 0
    reply = running.client.post("/v1/chat/completions", json=BODY)
    assert reply.status_code == 200
    assert health(running)[1]["status"] == "ok"


@pytest.mark.parametrize("isolation", ["process"])
@pytest.mark.parametrize("own_worker", [True])
def test_a_worker_that_hangs_is_told_of_before_it_is_replaced(
    serve: Serve, scripted: MakeModel
) -> None:
    running = serve(
        models={"paris": scripted(ANSWER)},
        options={"stall_timeout": 8.0},
        guard={"stall_timeout": 4.0},  # what the health goes by: it says so at half of it
    )
    running.backend.load("paris")
    assert running.backend.worker_pid is not None
    os.kill(running.backend.worker_pid, signal.SIGSTOP)
    while (found := health(running))[0] == 200:
        assert found[1]["engine_deaths"] == 0
    assert found[1]["status"] == "stalled" and found[1]["stalled_seconds"] > 2
    assert running.client.get("/ready").json()["status"] == "stalled"
    while (found := health(running))[1]["engine_deaths"] == 0:
        pass
    reply = running.client.post("/v1/chat/completions", json=BODY)
    assert reply.status_code == 200
    assert health(running)[1]["status"] == "ok"


def test_other_programs_are_named_to_admins_only(serve: Serve, scripted: MakeModel) -> None:
    keys = {"a": {"key": "a-secret", "admin": True}, "b": {"key": "b-secret"}}
    other = Programs()
    claim = Claim(device="cpu", bytes=1000, models={"theirs": 1000})
    assert other.claim(0, claim, 2**40, lambda answer: None) and other.flush(60)
    running = serve(models={"paris": scripted(ANSWER)}, keys=keys)
    running.backend.load("paris")
    for key, named in (("", False), ("b-secret", False), ("wrong", False), ("a-secret", True)):
        reply = running.client.get("/health", headers={"x-api-key": key})
        assert (reply.status_code, reply.json()["memory_elsewhere_bytes"]) == (200, 1000)
        assert ("theirs" in reply.text) is named
    for key, named in (("b-secret", False), ("a-secret", True)):
        with Backend.connect(running.url, key=key) as backend:
            assert bool(backend.health().held_by) is named
    other.release(0)
    assert other.flush(60)
