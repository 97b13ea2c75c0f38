"""One status from submission to end: how a request gets from one to the next, and out of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlx_guarded_llm.errors import (
    BackendClosed,
    GuardedLLMError,
    LoadFailed,
    QueueFull,
    RequestTimeout,
)
from mlx_guarded_llm.guard import Fail, Guard, Load, Start, Status
from mlx_guarded_llm.guard.state import RequestState
from tests.unit.guard.simulation import Simulation, event, outage, resident

ERROR = LoadFailed("refused")


def test_the_whole_way() -> None:
    guard = Guard(lost=True)
    seen = [guard.status("r")]
    guard.submit(0, "r", "a")
    seen.append(guard.status("r"))
    guard.fetched("r")
    seen.append(guard.status("r"))
    assert guard.back(1) == []  # nothing is wanted of the engine yet
    assert guard.prepared(2, "r") == [Load("load-1", "a")]
    seen.append(guard.status("r"))
    assert guard.job_ended(3, "load-1") == [Start("r", "a")]
    seen.append(guard.status("r"))
    guard.ask_load(4, "j", "b")
    guard.tick(4 + 120)
    seen.append(guard.status("r"))
    guard.job_ended(130, "j")
    seen.append(guard.status("r"))
    guard.lost(131, "SIGABRT")
    seen.append(guard.status("r"))
    guard.back(132)
    guard.job_ended(133, "load-3")
    seen.append(guard.status("r"))
    guard.cancel(134, "r")
    seen.append(guard.status("r"))
    timing, _ = guard.ended(135, "r", cause="cancelled")
    seen.append(guard.status("r"))
    assert [status.name for status in seen] == [
        "FINISHED",  # so is one that nobody knows
        "FETCHING",
        "PREPARING",
        "WAITING",
        "RUNNING",
        "PAUSED",
        "RUNNING",
        "INTERRUPTED",
        "RUNNING",
        "STOPPING",
        "FINISHED",
    ]
    assert (timing.queued, timing.recovering) == (3, 2)


def fetching(sim: Simulation) -> str:
    return sim.ask("a", 5, timeout=20)


def preparing(sim: Simulation) -> str:
    request = sim.ask("a", 5, timeout=20)
    sim.fetched(request)
    return request


def waiting(sim: Simulation) -> str:
    sim.submit("b", 100)
    return sim.submit("a", 5, timeout=20)


def interrupted(sim: Simulation) -> str:
    request = sim.submit("a", 15, timeout=20)
    sim.advance(11)
    sim.die(100)
    return request


NOT_STARTED = [fetching, preparing, waiting, interrupted]


@pytest.mark.parametrize("place", NOT_STARTED)
@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda sim, request: sim.advance(20), RequestTimeout),
        (lambda sim, request: sim.cancel(request), type(None)),
        (lambda sim, request: sim.do(sim.guard.refuse(sim.now, "a", ERROR)), LoadFailed),
        (lambda sim, request: sim.do(sim.guard.end_all(sim.now, ERROR)), LoadFailed),
        (lambda sim, request: sim.close(), BackendClosed),
    ],
    ids=["timeout", "cancel", "refuse", "end all", "close"],
)
def test_every_end_of_one_that_the_engine_does_not_have(
    place: Callable[[Simulation], str],
    end: Callable[[Simulation, str], None],
    told: type[GuardedLLMError],
) -> None:
    sim = Simulation()
    request = place(sim)
    assert sim.guard.status(request).name == place.__name__.upper()
    end(sim, request)
    assert isinstance(sim.ends[request].error, told)
    assert sim.guard.status(request) is Status.FINISHED
    assert event(sim, "request.failed", request_id=request)
    sim.guard.fetched(request)  # what comes late changes nothing
    assert sim.guard.prepared(sim.now, request) == []


def test_a_time_out_says_where_it_was() -> None:
    sim = Simulation()
    sim.ask("a", 5, timeout=20, name="fetching")
    sim.fetched(sim.ask("a", 5, timeout=20, name="preparing"))
    sim.advance(20)
    assert "fetching its model" in str(sim.ends["fetching"].error)
    assert "being prepared" in str(sim.ends["preparing"].error)
    guard = Guard(lost=True)
    guard.submit(0, "r", "a", expires=1)
    guard.fetched("r")
    (failed,) = guard.tick(1)
    assert isinstance(failed, Fail) and "waiting for MLX to start" in str(failed.error)


def test_a_death_leaves_alone_what_was_not_ready() -> None:
    sim = resident("a")
    first, second = sim.ask("a", 5), sim.ask("a", 5)
    sim.fetched(second)
    outage(sim)
    assert sim.guard.status(first) is Status.FETCHING
    assert sim.guard.status(second) is Status.PREPARING
    sim.finish()
    assert sim.ends[first].error is sim.ends[second].error is None


def test_only_what_waits_fills_the_queue() -> None:
    sim = Simulation(max_queue=1)
    for _ in range(5):
        sim.ask("a", 5)
    first, second, *_ = sim.open
    for request in (first, second):
        sim.fetched(request)
        sim.prepared(request)
    assert sim.guard.status(first) is Status.WAITING
    assert isinstance(sim.ends[second].error, QueueFull)


def test_what_needs_no_turn_ends_without_a_word() -> None:
    sim = Simulation()
    request = preparing(sim)
    sim.guard.answered(request)
    assert sim.guard.quiet and sim.events == []


def test_no_status_is_skipped() -> None:
    request = RequestState("r", "a", 0, None)
    with pytest.raises(AssertionError, match="FETCHING"):
        request.become(Status.RUNNING)
