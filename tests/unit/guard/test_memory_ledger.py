"""Memory: what fits, what is evicted to make room, and what is refused."""

from __future__ import annotations

from mlx_guarded_llm.errors import LoadDeferredTimeout, MemoryRefused
from mlx_guarded_llm.guard import Settle, Timing, UnlimitedMemory
from tests.unit.guard.simulation import SMALL, Footprint, Simulation, event, loads, resident


def test_alternating_requests_load_each_model_once_when_both_fit() -> None:
    sim = Simulation(sizes=SMALL, budget=12)
    for _ in range(3):
        sim.submit("a", 5)
        sim.submit("b", 5)
        sim.advance(3)
    sim.finish()
    assert loads(sim) == ["a", "b"]


def test_alternating_requests_swap_few_times_when_one_fits() -> None:
    sim = Simulation(sizes=SMALL, budget=6, fairness_window=5)
    for _ in range(50):
        sim.submit("a", 2)
        sim.submit("b", 2)
        sim.advance(2)
    busy = sim.now
    sim.finish()
    # Each load (10 s) is followed by a window at least: never one load a request.
    assert 3 <= len(loads(sim)) <= busy / 10
    assert all(end.error is None for end in sim.ends.values())


def test_idle_models_leave_least_recently_used_first_and_none_in_vain() -> None:
    sizes = {"old": Footprint(4), "small": Footprint(1), "new": Footprint(4), "big": Footprint(6)}
    sim = resident("old", "small", "new", sizes=sizes, budget=12)
    sim.submit("big", 1, tokens=1)
    sim.finish()
    assert event(sim, "load.started", model="big").details["evict"] == ["old"]
    assert sim.residents == {"small", "new", "big"}


def test_pinned_and_busy_models_stay() -> None:
    sim = Simulation(sizes=SMALL, budget=9)
    sim.ask_load("a", pin=True)
    sim.ask_load("b")
    sim.finish()
    sim.submit("b", 500)
    request = sim.submit("c", 5)
    sim.advance(400)
    assert sim.residents == {"a", "b"}
    assert event(sim, "load.deferred", model="c", cause="memory").waiting_for
    sim.finish()
    assert sim.ends[request].error is None
    assert sim.residents == {"a", "c"}


def test_what_cannot_fit_beside_pinned_models_is_refused_with_numbers() -> None:
    sim = Simulation(sizes={"a": Footprint(4), "b": Footprint(7)}, budget=10)
    sim.ask_load("a", pin=True)
    sim.finish()
    request = sim.submit("b", 5)
    error = sim.ends[request].error
    assert isinstance(error, MemoryRefused)
    assert (error.needed_bytes, error.budget_bytes) == (4 + 7 + 1, 10)
    assert "beside a" in str(error)
    assert event(sim, "load.failed").model == "b"
    load = sim.ask_load("b")
    assert isinstance(sim.settled[load].error, MemoryRefused)


def test_only_the_request_that_is_too_large_is_refused() -> None:
    sim = Simulation(sizes={"a": Footprint(4), "b": Footprint(4)}, budget=12)
    sim.ask_load("a", pin=True)
    large, small = sim.submit("b", 5, tokens=7), sim.submit("b", 5, tokens=2)
    sim.finish()
    assert isinstance(sim.ends[large].error, MemoryRefused)
    assert sim.ends[small].error is None
    assert loads(sim) == ["a", "b"]
    large = sim.submit("b", 5, tokens=7)
    assert isinstance(sim.ends[large].error, MemoryRefused)


def test_a_large_request_has_idle_models_leave_in_its_own_place() -> None:
    sim = resident("a", "b", sizes=SMALL, budget=12, load_wait=20)
    sim.submit("b", 3)
    running = sim.submit("a", 30)
    sim.advance(5)
    large = sim.submit("a", 5, tokens=4)
    later = sim.ask_load("c")
    assert [job.kind for job in sim.state.jobs.values()] == ["unload", "load"]
    sim.advance(24)
    assert [e.model for e in sim.events if e.kind == "unload.finished"] == ["b"]
    assert large in sim.generations
    sim.finish()
    assert event(sim, "unload.started").cause == f"room for {large}"
    assert sim.ends[running].error is None and sim.settled[later].error is None


def test_an_eviction_takes_the_place_of_its_request_before_later_jobs() -> None:
    sim = resident("a", "b", sizes=SMALL, budget=12)
    sim.submit("a", 30, tokens=2)
    sim.submit("b", 5, tokens=1)
    large = sim.submit("a", 5, tokens=4)  # b is busy: nothing to evict yet
    load = sim.ask_load("c")
    assert [job.kind for job in sim.state.jobs.values()] == ["load"]
    sim.advance(5)
    assert [job.kind for job in sim.state.jobs.values()] == ["unload", "load"]
    sim.finish()
    assert sim.ends[large].error is None and sim.settled[load].error is None


def test_a_load_does_not_evict_a_model_that_an_older_request_waits_for() -> None:
    sizes = {"a": Footprint(4), "x": Footprint(1), "y": Footprint(4)}
    sim = resident("a", "x", sizes=sizes, budget=12, load_wait=20)
    sim.submit("a", 100, tokens=3)
    large = sim.submit("x", 5, tokens=8)
    later = sim.submit("y", 5)
    sim.finish()
    assert sim.ends[large].time < sim.ends[later].time
    assert loads(sim) == ["a", "x", "y"]


def test_an_eviction_that_is_not_needed_any_more_is_dropped() -> None:
    sim = resident("a", "b", sizes=SMALL, budget=12)
    running = sim.submit("a", 10, tokens=3)
    large = sim.submit("a", 5, tokens=4)
    assert event(sim, "unload.queued").model == "b"
    assert event(sim, "unload.deferred").waiting_for == ((running, "a"),)
    sim.cancel(large)
    assert event(sim, "unload.cancelled").cause == "not needed any more"
    large = sim.submit("a", 5, tokens=4)
    sim.finish()
    assert sim.residents == {"a", "b"}
    assert sim.ends[large].error is None


def test_a_caller_may_watch_an_eviction_and_let_go_of_it() -> None:
    sim = resident("a", "b", sizes=SMALL, budget=12)
    sim.submit("a", 30, tokens=3)
    large = sim.submit("a", 5, tokens=4)
    watched = sim.ask_unload("b")
    assert len(sim.state.jobs) == 1
    sim.cancel_job(watched)
    assert len(sim.state.jobs) == 1  # the request still needs it
    watched = sim.ask_unload("b")
    sim.cancel(large)
    assert len(sim.state.jobs) == 1  # the caller still wants it
    sim.finish()
    assert sim.settled[watched].ran and sim.residents == {"a"}


def test_asking_for_a_model_that_is_to_be_evicted_chooses_another() -> None:
    sizes = {"a": Footprint(2), "b": Footprint(4), "c": Footprint(4)}
    sim = resident("a", "b", "c", sizes=sizes, budget=13)
    running = sim.submit("a", 30, tokens=1)
    sim.submit("a", 5, tokens=3)
    assert [job.model for job in sim.state.jobs.values()] == ["b"]
    sim.advance(1)
    load = sim.ask_load("b")
    assert sim.settled[load] == Settle(load, None, ran=False)
    assert [job.model for job in sim.state.jobs.values()] == ["c"]
    sim.ask_load("c", pin=True)
    assert [job.model for job in sim.state.jobs.values()] == ["b"]
    sim.finish()
    assert sim.ends[running].error is None


def test_raise_ends_the_request_whose_eviction_waited_too_long() -> None:
    sim = resident("a", "b", sizes=SMALL, budget=12, load_wait=20, on_load_deadline="raise")
    running = sim.submit("a", 50, tokens=3)
    large = sim.submit("a", 5, tokens=4)
    sim.advance(20)
    error = sim.ends[large].error
    assert isinstance(error, LoadDeferredTimeout) and error.held_by == ((running, "a"),)
    sim.finish()
    assert sim.residents == {"a", "b"}


def test_evicted_models_with_requests_waiting_load_again() -> None:
    sim = resident("a", sizes=SMALL, budget=6, fairness_window=0)
    sim.submit("a", 5)
    sim.submit("b", 5)
    back = sim.submit("a", 5)
    sim.finish()
    assert loads(sim) == ["a", "b", "a"]
    timing = sim.ends[back].timing
    assert timing == Timing(queued=5 + 10 + 5 + 10, deferred=5.0, loading=10.0)
    assert event(sim, "load.queued").cause == "wanted again"


def test_without_a_ledger_everything_fits() -> None:
    room = UnlimitedMemory()
    assert room.plan_load("a", ()) == room.plan_start("r", "a", ()) == ()
    assert room.refusal("a", ()).needed_bytes == 0
