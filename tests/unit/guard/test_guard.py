"""Inputs and answers of the guard: ends, names and the page about it."""

from __future__ import annotations

import pytest

from mlx_guarded_llm.errors import BackendClosed, GenerationFailed, InvalidRequest, LoadFailed
from mlx_guarded_llm.guard import Fail, Guard, Load, Settle, Start, Stop, Timing
from tests.unit.guard.simulation import Simulation, event, resident, submit


def test_cancel_stops_an_active_generation_once() -> None:
    guard = Guard()
    submit(guard, 0, "r", "a")
    assert guard.tick(0) == []
    job = guard._state.running
    assert job is not None
    assert guard.job_ended(1, job.id) == [Start("r", "a")]
    assert guard.cancel(2, "r") == [Stop("r", None)]
    assert guard.cancel(3, "r") == []
    timing, actions = guard.ended(4, "r", cause="cancelled")
    assert (timing.queued, actions) == (1, [])
    assert guard.quiet


def test_ids_in_use_are_refused() -> None:
    sim = resident("a")
    sim.submit("a", 5, name="r")
    with pytest.raises(InvalidRequest, match="'r'"):
        sim.guard.submit(sim.now, "r", "b")
    load = sim.ask_load("b")
    for ask in (sim.guard.ask_load, sim.guard.ask_unload, sim.guard.ask_run):
        with pytest.raises(InvalidRequest, match=load):
            ask(sim.now, load, "b")
    sim.finish()


def test_a_caller_may_use_a_name_like_the_guards_own() -> None:
    guard = Guard()
    guard.ask_run(0, "load-2", "cell")
    submit(guard, 0, "r", "a")  # the request is 1, its load would be load-2
    assert [job.id for job in guard._state.jobs.values()] == ["load-2+"]


def test_close_takes_back_what_waits_and_stops_what_runs() -> None:
    sim = resident("a", keep_alive=1, load_wait=0)
    running = sim.submit("a", 50)
    sim.ask_load("b")
    waiting, run = sim.submit("c", 5), sim.ask_run()
    unload, load = sim.ask_unload("a"), sim.ask_load("a")
    sim.close()
    for job in (run, unload, load):
        assert isinstance(sim.settled[job].error, BackendClosed)
    assert isinstance(sim.ends[waiting].error, BackendClosed)
    assert not sim.guard.quiet  # the load of b is under way, and a generation stops
    late, asked = sim.submit("a", 1), sim.ask_load("a")
    assert isinstance(sim.ends[late].error, BackendClosed)
    assert isinstance(sim.settled[asked].error, BackendClosed)
    sim.close()
    sim.finish()
    assert isinstance(sim.ends[running].error, BackendClosed)
    sim.advance(100)
    sim.do(sim.guard.tick(sim.now))
    assert sim.residents  # they are the owner's to drop
    assert sim.guard.quiet and sim.guard.next_deadline() is None


def test_close_with_an_error_gives_it_to_everybody() -> None:
    guard = Guard()
    guard.ask_run(0, "j", "cell")
    submit(guard, 0, "r", "a")
    error = GenerationFailed("the engine is gone")
    assert guard.close(1, error) == [Fail("r", error)]
    assert guard.job_ended(2, "j", error=error) == [Settle("j", error, ran=True)]


def test_the_engine_may_report_that_every_model_is_gone() -> None:
    sim = resident("a", "b", load_wait=0)
    request = sim.submit("a", 50)
    load = sim.ask_load("c")
    waiting = sim.submit("b", 5)
    error = LoadFailed("the engine died")
    sim.job = None
    sim.residents.clear()
    actions = sim.guard.job_ended(sim.now, load, error=error, left=("a", "b", "c", "unknown"))
    assert [type(action) for action in actions] == [Settle, Load]
    (timing, actions) = sim.guard.ended(sim.now, request, error=error)
    assert timing.paused == 0 and actions == []
    assert sim.state.models.keys() == {"b"} and waiting in sim.state.requests


def test_unknown_ids_change_nothing() -> None:
    guard = Guard()
    assert guard.ended(0, "r") == (Timing(), [])
    assert guard.cancel(0, "r") == guard.cancel_job(0, "j") == guard.job_ended(0, "j") == []
    guard.first_token(0, "r")
    assert guard.models() == [] and guard.quiet and guard.may_step


def test_the_first_token_is_on_record() -> None:
    sim = resident("a")
    request = sim.submit("a", 5)
    sim.guard.first_token(sim.now, request, prompt_tokens=12)
    assert event(sim, "request.first_token").details == {"prompt_tokens": 12}
    sim.finish()


# ---- the page about it ---------------------------------------------------------------


def test_the_timeline_of_the_docs() -> None:
    """docs/concepts/scheduling.md, "A worked timeline"."""
    sim = Simulation(load_wait=120, fairness_window=5, load_seconds=10)
    sim.submit("a", 400, name="r1")
    arrivals = [(30, "b", 20, "r2"), (33, "a", 20, "r3"), (36, "a", 20, "r4"), (100, "c", 20, "r5")]
    for time, model, length, name in arrivals:
        sim.until(10 + time)
        sim.submit(model, length, name=name)
    sim.finish()
    told = [
        (e.time - 10, e.kind, e.request_id or e.model)
        for e in sim.events
        if e.kind.split(".")[1] in ("started", "paused", "resumed", "finished") and e.time >= 10
    ]
    assert told == [
        (0, "load.finished", "a"),
        (0, "request.started", "r1"),
        (33, "request.started", "r3"),
        (53, "request.finished", "r3"),
        (150, "request.paused", "r1"),
        (150, "load.started", "b"),
        (160, "load.finished", "b"),
        (160, "request.started", "r2"),
        (160, "request.started", "r4"),
        (160, "request.resumed", "r1"),
        (180, "request.finished", "r2"),
        (180, "request.finished", "r4"),
        (220, "request.paused", "r1"),
        (220, "load.started", "c"),
        (230, "load.finished", "c"),
        (230, "request.started", "r5"),
        (230, "request.resumed", "r1"),
        (250, "request.finished", "r5"),
        (420, "request.finished", "r1"),
    ]


def test_how_far_a_model_is() -> None:
    guard = Guard()

    def stages() -> list[str]:
        return [guard.stage(model) for model in guard.models()]

    submit(guard, 0, "r", "a")
    guard.tick(0)
    assert stages() == ["loading"]
    job = guard._state.running
    assert job is not None
    guard.job_ended(1, job.id)
    submit(guard, 2, "s", "b")
    assert stages() == ["resident", "deferred"], "r generates"
    guard.ended(3, "r", cause="stop")
    assert stages() == ["resident", "loading"]
    job = guard._state.running
    assert job is not None
    guard.job_ended(4, job.id)
    assert stages() == ["resident", "resident"]
    guard.ask_unload(5, "u", "b")
    assert stages() == ["resident", "unloading"]
