"""Jobs: one load for all who want it, and unloads and foreign work by the same rule."""

from __future__ import annotations

from mlx_guarded_llm.errors import LoadFailed
from mlx_guarded_llm.guard import Run, Settle, Timing, Unload
from tests.unit.guard.simulation import SMALL, Simulation, event, loads, resident

# ---- one load for many ---------------------------------------------------------------


def test_many_requests_for_one_model_cause_one_load() -> None:
    sim = Simulation()
    requests = [sim.submit("a", 5) for _ in range(20)]
    load = sim.ask_load("a")
    sim.finish()
    assert loads(sim) == ["a"]
    assert all(sim.ends[r].error is None for r in requests)
    assert sim.settled[load].ran


def test_a_failed_load_fails_all_that_wait_and_the_next_request_tries_afresh() -> None:
    sim = Simulation()
    first, second = sim.submit("a", 5), sim.submit("a", 5)
    load = sim.ask_load("a")
    unload = sim.ask_unload("a")
    error = sim.job_error = LoadFailed("bad weights")
    sim.finish()
    assert sim.ends[first].error is sim.ends[second].error is error
    assert sim.settled[load].error is error and sim.settled[load].ran
    assert sim.settled[unload] == Settle(unload, None, ran=False)
    assert sim.guard.models() == []
    again = sim.submit("a", 5)
    sim.finish()
    assert sim.ends[again].error is None
    assert loads(sim) == ["a", "a"]


def test_a_request_that_comes_during_the_load_is_charged_for_the_rest_of_it() -> None:
    sim = resident("z")
    sim.submit("z", 7)
    sim.submit("a", 1)
    sim.advance(7 + 4)
    late = sim.submit("a", 1)
    sim.finish()
    assert sim.ends[late].timing == Timing(queued=6.0, deferred=0.0, loading=6.0, paused=0.0)


def test_the_last_request_to_be_cancelled_takes_its_load_along() -> None:
    sim = resident("a")
    sim.submit("a", 50)
    first, second = sim.submit("b", 5), sim.submit("b", 5)
    unload = sim.ask_unload("b")
    sim.cancel(first)
    assert len(sim.state.jobs) == 2
    sim.cancel(second)
    assert not sim.state.jobs and "b" not in sim.state.models
    assert sim.settled[unload] == Settle(unload, None, ran=False)
    assert event(sim, "load.cancelled").cause == "cancelled"
    assert event(sim, "request.failed").cause == "cancelled"
    sim.finish()


def test_a_load_whose_requests_were_cancelled_while_it_ran_leaves_the_model_resident() -> None:
    sim = Simulation()
    request = sim.submit("a", 5)
    sim.advance(1)
    sim.cancel(request)
    sim.finish()
    assert sim.residents == {"a"}


# ---- unload and foreign work obey the same rule --------------------------------------


def test_foreign_work_waits_for_generations_and_pauses_them_at_its_deadline() -> None:
    sim = resident("a", load_wait=20)
    sim.submit("a", 30)
    run = sim.ask_run("whisper")
    sim.advance(19)
    assert sim.job is None
    assert event(sim, "run.deferred").waiting_for
    sim.advance(1)
    assert isinstance(sim.job, Run) and sim.job.job_id == run
    sim.finish()
    assert sim.settled[run].ran


def test_an_unload_waits_for_its_own_generations_and_lets_other_jobs_pass() -> None:
    sim = resident("a", "b", load_wait=20, fairness_window=5)
    mine = sim.submit("a", 100)
    unload = sim.ask_unload("a")
    assert event(sim, "unload.deferred", cause="busy").waiting_for == ((mine, "a"),)
    load = sim.ask_load("c")
    sim.advance(6)
    held, free = sim.submit("a", 1), sim.submit("b", 1)
    assert held not in sim.generations and free not in sim.generations  # behind load of c
    assert event(sim, "request.queued", request_id=held).waiting_for
    sim.advance(30)
    assert sim.settled[load].ran
    assert free in sim.ends  # passed the unload of a, which only holds what is for a
    assert mine in sim.generations
    sim.finish()
    assert sim.settled[unload].ran
    assert sim.ends[held].error is None
    assert loads(sim) == ["a", "b", "c", "a"]


def test_an_unload_pauses_the_generations_of_other_models_at_its_deadline() -> None:
    sim = resident("a", "b", load_wait=20)
    long = sim.submit("a", 100)
    sim.ask_unload("b")
    sim.advance(20)
    assert isinstance(sim.job, Unload) and sim.job.paused == (long,)
    sim.finish()


def test_jobs_are_first_come_first_served() -> None:
    sim = resident("a")
    sim.submit("a", 5)
    sim.ask_load("b")
    run = sim.ask_run("cell")
    sim.ask_unload("a")
    assert event(sim, "run.deferred", job_id=run).cause == "behind a load"
    sim.finish()
    began = [e.kind for e in sim.events if e.kind.endswith(".started")][-3:]
    assert began == ["load.started", "run.started", "unload.started"]


def test_what_is_done_already_settles_at_once() -> None:
    sim = resident("a")
    load, unload = sim.ask_load("a"), sim.ask_unload("nowhere")
    assert sim.settled == sim.settled | {
        load: Settle(load, None, ran=False),
        unload: Settle(unload, None, ran=False),
    }
    assert [m.name for m in sim.guard.models()] == ["a"]


def test_it_has_a_model_from_the_moment_its_load_is_wanted() -> None:
    sim = resident("a")
    assert sim.guard.has("a") and not sim.guard.has("b")
    load = sim.ask_load("b")
    assert sim.guard.has("b")  # loading
    other = sim.ask_load("c")
    assert sim.guard.has("c")  # deferred behind it
    sim.cancel_job(other)
    assert not sim.guard.has("c")
    sim.finish()
    assert sim.settled[load].error is None and sim.guard.has("b")
    sim.ask_unload("b")
    sim.finish()
    assert not sim.guard.has("b")


def test_a_load_asked_while_its_model_leaves_comes_after() -> None:
    sim = resident("a")
    unload = sim.ask_unload("a")
    also = sim.ask_unload("a")
    load = sim.ask_load("a")
    request = sim.submit("a", 5)
    assert event(sim, "request.queued").waiting_for
    sim.finish()
    assert sim.settled[unload].ran and sim.settled[also].ran and sim.settled[load].ran
    assert sim.ends[request].error is None
    assert loads(sim) == ["a", "a"]


def test_a_load_behind_an_unload_is_not_needed_when_the_unload_is_taken_back() -> None:
    sim = resident("a")
    sim.submit("a", 20)
    unload = sim.ask_unload("a")
    load = sim.ask_load("a", pin=True)
    assert len(sim.state.jobs) == 2
    sim.cancel_job(unload)
    assert sim.settled[load] == Settle(load, None, ran=False)
    assert sim.state.models["a"].pinned
    assert event(sim, "load.cancelled").cause == "resident already"
    sim.finish()


def test_a_load_behind_an_unload_that_failed_is_not_needed() -> None:
    sim = resident("a")
    unload = sim.ask_unload("a")
    load = sim.ask_load("a")
    sim.job_error = LoadFailed("odd")
    sim.finish()
    assert sim.settled[unload].error is not None
    assert sim.settled[load] == Settle(load, None, ran=False)


def test_an_unload_of_a_model_evicted_before_it_has_nothing_to_do() -> None:
    sim = resident("a", sizes=SMALL, budget=6)
    sim.submit("a", 5)
    sim.ask_load("b")
    unload, load = sim.ask_unload("a"), sim.ask_load("a")
    sim.finish()
    assert sim.settled[unload] == Settle(unload, None, ran=False)
    assert sim.settled[load].ran and sim.residents == {"a"}


def test_evictions_that_a_failed_load_did_not_do_leave_the_models_resident() -> None:
    sim = resident("a", sizes=SMALL, budget=6)
    sim.ask_load("b")
    sim.job_error, sim.job_left = LoadFailed("bad weights"), ()
    again = sim.ask_load("a")
    sim.finish()
    assert sim.residents == {"a"}
    assert sim.settled[again] == Settle(again, None, ran=False)


def test_a_running_job_whose_caller_went_goes_on() -> None:
    sim = Simulation()
    load = sim.ask_load("a", pin=True)
    other = sim.ask_load("a")
    sim.cancel_job(load)
    sim.finish()
    assert load not in sim.settled and sim.settled[other].ran
    assert not sim.state.models["a"].pinned  # who wanted the pin has gone


def test_a_pending_job_whose_callers_all_went_is_dropped() -> None:
    sim = resident("a")
    sim.submit("a", 20)
    load, other, run = sim.ask_load("b"), sim.ask_load("b"), sim.ask_run()
    sim.cancel_job(load)
    sim.cancel_job(run)
    assert [job.kind for job in sim.state.jobs.values()] == ["load"]
    assert event(sim, "run.cancelled").cause == "cancelled"
    request = sim.submit("b", 1)
    sim.cancel_job(other)
    assert sim.state.jobs  # the request still wants it
    sim.finish()
    assert sim.ends[request].error is None


def test_a_model_is_unpinned_while_it_loads_and_when_it_is_there() -> None:
    sim = Simulation()
    sim.ask_load("a", pin=True)
    sim.unpin("a")
    sim.finish()
    assert not sim.state.models["a"].pinned
    sim.ask_load("a", pin=True)
    assert sim.state.models["a"].pinned
    sim.unpin("a")
    assert sim.state.models["a"].resident and not sim.state.models["a"].pinned
    sim.unpin("nobody knows it")


def test_a_load_that_only_a_pin_wanted_is_dropped_with_it() -> None:
    sim = Simulation()
    sim.ask_load("a", pin=True)
    sim.finish()
    sim.die()
    assert [job.model for job in sim.state.jobs.values()] == ["a"]
    sim.unpin("a")
    assert not sim.state.jobs and "a" not in sim.state.models
