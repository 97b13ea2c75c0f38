"""What the guard does while there is no engine: one example a rule."""

from __future__ import annotations

from mlx_guarded_llm.errors import BackendClosed, EngineDied, RequestTimeout
from mlx_guarded_llm.guard import Load, Settle
from tests.unit.guard.simulation import Simulation, event, kinds, loads, outage, resident


def test_nothing_begins_until_there_is_an_engine_again() -> None:
    sim = Simulation(keep_alive=1)
    sim.die(50)
    requests = [sim.submit("a", 5), sim.submit("a", 5), sim.submit("b", 5)]
    timed = sim.submit("b", 5, timeout=10)
    jobs = [sim.ask_load("c"), sim.ask_run()]
    gone = sim.ask_load("d")
    unload = sim.ask_unload("e")
    assert sim.settled[unload] == Settle(unload, ran=False)
    sim.cancel(requests[1])
    sim.cancel_job(gone)
    sim.advance(20)
    assert isinstance(sim.ends[timed].error, RequestTimeout)
    assert sim.guard.next_deadline() is None
    assert requests[1] in sim.ends and not sim.ran[1:]
    assert "deferred" not in kinds(sim, "load")  # nobody knows yet behind what
    sim.advance(30)
    assert event(sim, "load.deferred", model="b").cause == "behind a load"
    sim.finish()
    assert sim.ends[requests[0]].error is None and sim.ends[requests[2]].error is None
    assert all(sim.settled[job].ran for job in jobs)


def test_a_job_name_used_again_meanwhile_is_deferred_once() -> None:
    sim = Simulation()
    sim.die(5)
    sim.ask_load("a")
    sim.cancel_job(sim.ask_run("cell", "mine"))
    sim.ask_run("cell", "mine")
    sim.finish()
    assert kinds(sim, "run") == ["queued", "cancelled", "queued", "deferred", "started", "finished"]


def test_more_deaths_before_it_works_change_nothing() -> None:
    sim = resident("a")
    request = sim.submit("a", 50)
    sim.advance(10)
    sim.die(5)
    events = len(sim.events)
    sim.die(5)
    assert len(sim.events) == events
    sim.finish()
    assert sim.ends[request].error is None and loads(sim) == ["a", "a"]


def test_a_death_while_models_come_back_keeps_their_order() -> None:
    sim = resident("a", "b", "c")
    requests = [sim.submit(model, 50) for model in ("a", "b", "c")]
    sim.advance(10)
    outage(sim)
    sim.advance(15)  # b is loading
    outage(sim)
    sim.finish()
    assert loads(sim)[3:] == ["a", "b", "a", "b", "c"]
    assert all(sim.ends[request].error is None for request in requests)


def test_close_takes_back_what_was_cut_off() -> None:
    sim = resident("a")
    request, load = sim.submit("a", 50), sim.ask_load("b")
    sim.advance(1)
    sim.die(5)
    sim.close()
    assert isinstance(sim.ends[request].error, BackendClosed)
    assert isinstance(sim.settled[load].error, BackendClosed)
    assert sim.guard.quiet


def test_after_close_nothing_is_loaded_again() -> None:
    sim = Simulation(load_wait=0)
    sim.ask_load("a", pin=True)
    sim.finish()
    request = sim.submit("a", 50)
    load = sim.ask_load("b")
    assert isinstance(sim.job, Load)
    sim.close()
    sim.evict_idle()
    sim.die(5, reported=False)
    assert isinstance(sim.ends[request].error, BackendClosed)
    assert isinstance(sim.settled[load].error, EngineDied)
    assert sim.guard.quiet and not sim.state.models
    sim.finish()
    assert loads(sim) == ["a", "b"]
