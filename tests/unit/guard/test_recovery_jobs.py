"""What becomes of jobs when an engine dies: one example a rule."""

from __future__ import annotations

from mlx_guarded_llm.errors import EngineDied
from mlx_guarded_llm.guard import Load, Settle, Unload
from tests.unit.guard.simulation import Footprint, Simulation, event, kinds, loads, outage, resident


def test_a_load_that_was_cut_off_is_tried_again_for_all_who_wait() -> None:
    sim = resident("a")
    running = sim.submit("a", 20)
    sim.advance(1)
    caller, request = sim.ask_load("b"), sim.submit("b", 5)
    sim.advance(24)
    assert isinstance(sim.job, Load)
    sim.die(5)
    assert sim.state.jobs[sim.state.models["b"].load or ""].asked_at == sim.now - 24
    assert event(sim, "load.interrupted").cause == "SIGABRT"
    sim.finish()
    assert sim.settled[caller].ran and sim.settled[caller].error is None
    assert sim.ends[request].error is None and sim.ends[running].error is None
    assert loads(sim) == ["a", "b", "b"]


def test_a_load_that_was_cut_off_comes_back_for_its_weights_alone_too() -> None:
    """Its first request is another now, and would need the place of one that was active."""
    sim = resident("a", sizes={"a": Footprint(6), "b": Footprint(4)}, budget=14, load_wait=0)
    start = sim.now
    running = sim.submit("a", 50, tokens=2)
    small, large = sim.submit("b", 5, tokens=1), sim.submit("b", 5, tokens=5)
    sim.advance(1)
    assert isinstance(sim.job, Load)
    sim.die(4)
    sim.cancel(small)
    sim.finish()
    assert sim.ends[running].time == start + 1 + 4 + 10 + 10 + 50
    assert sim.ends[large].error is None and sim.ends[large].time > sim.ends[running].time
    assert loads(sim) == ["a", "b", "a", "b"]


def test_what_a_load_was_to_evict_is_gone_and_comes_back_behind_it() -> None:
    sizes = {"a": Footprint(6), "b": Footprint(6)}
    sim = resident("a", sizes=sizes, budget=10)
    sim.ask_load("b")
    other = sim.submit("a", 5)
    assert isinstance(sim.job, Load) and sim.job.evict == ("a",)
    sim.advance(1)
    outage(sim)
    sim.finish()
    assert loads(sim) == ["a", "b", "b", "a"]
    assert sim.ends[other].error is None


def test_a_load_that_nobody_waits_for_any_more_has_failed() -> None:
    sim = Simulation()
    sim.cancel_job(sim.ask_load("a"))
    sim.die(5)
    assert sim.guard.quiet
    assert event(sim, "load.failed").cause == "EngineDied: the load of a was cut off: SIGABRT."
    sim.finish()


def test_an_unload_is_done() -> None:
    sim = resident("a")
    caller = sim.ask_unload("a")
    assert isinstance(sim.job, Unload)
    sim.die(5)
    assert sim.settled[caller] == Settle(caller)
    assert event(sim, "unload.finished").model == "a"
    sim.finish()
    assert not sim.residents


def test_a_load_asked_for_while_its_model_was_unloaded_is_still_to_come() -> None:
    sim = resident("a")
    sim.ask_unload("a")
    load = sim.ask_load("a")
    sim.die(5)
    assert load not in sim.settled
    sim.finish()
    assert sim.settled[load] == Settle(load) and sim.residents == {"a"}


def test_foreign_work_fails_and_is_not_run_twice() -> None:
    sim = Simulation()
    running, waiting = sim.ask_run("cell"), sim.ask_run("next")
    sim.advance(3)
    sim.die(5)
    error = sim.settled[running].error
    assert isinstance(error, EngineDied) and error.retryable
    assert "the run of cell was cut off: SIGABRT. It may have run in part" in str(error)
    assert event(sim, "run.failed").details["seconds"] == 3
    assert waiting not in sim.settled
    sim.finish()
    assert sim.settled[waiting].error is None
    assert kinds(sim, "run").count("started") == 2


def test_a_pending_unload_is_settled_and_older_requests_go_on() -> None:
    sim = resident("a")
    request = sim.submit("a", 50)
    caller = sim.ask_unload("a")
    later = sim.ask_load("a")  # behind the unload
    sim.advance(10)
    sim.die(5)
    assert sim.settled[caller] == Settle(caller)
    sim.finish()
    assert sim.ends[request].error is None and sim.settled[later].ran
    assert loads(sim) == ["a", "a"]  # one load for both


def test_an_unload_asked_for_takes_the_pin_away() -> None:
    sim = Simulation()
    sim.ask_load("a", pin=True)
    sim.finish()
    sim.submit("b", 30)
    sim.finish()
    sim.submit("b", 30)
    sim.advance(1)
    sim.ask_unload("a")  # waits for the generation
    sim.die(5)
    sim.finish()
    assert loads(sim) == ["a", "b", "b"]


def test_evictions_are_dropped() -> None:
    sizes = {"a": Footprint(4), "b": Footprint(4), "c": Footprint(4)}
    sim = resident("a", "b", sizes=sizes, budget=14)
    sim.submit("b", 50, tokens=1)
    large = sim.submit("b", 5, tokens=4)  # a is to leave for it
    assert kinds(sim, "unload") == ["queued", "deferred"]
    outage(sim)
    assert kinds(sim, "unload")[2:] == ["cancelled"]
    sim.finish()
    assert sim.ends[large].error is None and loads(sim) == ["a", "b", "b"]


def test_an_unload_that_waits_behind_a_load_of_its_model_stays_there() -> None:
    sim = Simulation()
    load, unload = sim.ask_load("a"), sim.ask_unload("a")
    sim.advance(1)
    outage(sim)
    sim.finish()
    assert sim.settled[load].ran and sim.settled[unload].ran and not sim.residents
    assert kinds(sim, "unload") == ["queued", "deferred", "started", "finished"]
