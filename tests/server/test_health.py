"""Health and readiness, with a real worker that is killed, and one that hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend.programs import Claim, Programs
from mlx_guarded_llm.server.opening import open_backend
from tests.conftest import MakeModel

from .conftest import ANSWER, Running, Serve, running, settings_of

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


@pytest.fixture
def other() -> Iterator[Programs]:
    """Another program of this user, which holds 1 GiB."""
    program = Programs()
    claim = Claim(device="cpu", bytes=2**30, models={"theirs": 2**30})
    assert program.claim(0, claim, 2**40, lambda answer: None) and program.flush(60)
    yield program
    program.release(0)
    assert program.flush(60)


@pytest.mark.usefixtures("other")
def test_other_programs_are_named_to_admins_only(serve: Serve, scripted: MakeModel) -> None:
    keys = {"a": {"key": "a-secret", "admin": True}, "b": {"key": "b-secret"}}
    running = serve(
        models={"paris": scripted(ANSWER)}, keys=keys, options={"memory_budget": "2GiB"}
    )
    running.backend.load("paris")
    for key, named in (("", False), ("b-secret", False), ("wrong", False), ("a-secret", True)):
        reply = running.client.get("/health", headers={"x-api-key": key})
        assert (reply.status_code, reply.json()["memory_elsewhere_bytes"]) == (200, 2**30)
        assert ("theirs" in reply.text) is named
    for key, named in (("b-secret", False), ("a-secret", True)):
        with Backend.connect(running.url, key=key) as backend:
            assert bool(backend.health().held_by) is named


@pytest.mark.usefixtures("other")
def test_a_refusal_names_no_other_program(
    scripted: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path))
    guard = {"isolation": "thread", "memory_budget": "1GiB", "offline": True}
    settings = settings_of(models={"paris": scripted(ANSWER)}, guard=guard)
    with open_backend(settings) as backend, running(backend, settings) as served:
        reply = served.client.post("/v1/chat/completions", json=BODY)
        assert reply.status_code == 507 and "other programs hold 1.00 GiB" in reply.text
        assert "theirs" not in reply.text and f"process {os.getpid()}" not in reply.text
