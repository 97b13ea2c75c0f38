"""The guard's rules, one example each. Times are seconds on the guard's clock."""

from __future__ import annotations

import math

import pytest

from mlx_guarded_llm.errors import (
    BackendClosed,
    GenerationFailed,
    InvalidRequest,
    LoadDeferredTimeout,
    LoadFailed,
    MemoryRefused,
    QueueFull,
    RequestTimeout,
)
from mlx_guarded_llm.guard import (
    Fail,
    Guard,
    Load,
    Run,
    Settle,
    Start,
    Stop,
    Timing,
    Unbounded,
    Unload,
)
from mlx_guarded_llm.record.events import Event
from tests.unit.guard.simulation import Footprint, Simulation


def resident(*models: str, **options: object) -> Simulation:
    """A simulation in which these models have been loaded and nothing runs."""
    sim = Simulation(**options)  # type: ignore[arg-type]
    for model in models:
        sim.ask_load(model)
    sim.finish()
    assert sim.residents == set(models)
    return sim


def kinds(sim: Simulation, subject: str) -> list[str]:
    return [e.kind.split(".")[1] for e in sim.events if e.kind.startswith(subject + ".")]


def event(sim: Simulation, kind: str, **fields: str) -> Event:
    """The last event of this kind."""
    return [
        e
        for e in sim.events
        if e.kind == kind and all(getattr(e, name) == value for name, value in fields.items())
    ][-1]


def loads(sim: Simulation) -> list[str | None]:
    return [e.model for e in sim.events if e.kind == "load.started"]


# ---- the incident --------------------------------------------------------------------


def test_a_load_waits_for_the_generation_that_is_running() -> None:
    sim = resident("llama-70b")
    start = sim.now
    answer = sim.submit("llama-70b", 105)
    sim.advance(56)
    other = sim.submit("phi3", 3)
    sim.finish()
    assert sim.ends[answer].time == start + 105
    assert sim.ran[-1].began == start + 105
    assert sim.ends[other].time == start + 105 + 10 + 3
    timing = sim.ends[other].timing
    assert timing == Timing(queued=59.0, deferred=49.0, loading=10.0, paused=0.0)


def test_the_record_says_who_waited_for_whom() -> None:
    sim = resident("llama-70b")
    answer = sim.submit("llama-70b", 105)
    sim.advance(56)
    other = sim.submit("phi3", 3)
    sim.finish()
    load = event(sim, "load.queued", model="phi3")
    assert load.request_id == other and load.job_id
    assert event(sim, "request.queued", request_id=other).waiting_for == ((load.job_id, "phi3"),)
    deferred = event(sim, "load.deferred", model="phi3")
    assert deferred.cause == "generations"
    assert deferred.waiting_for == ((answer, "llama-70b"),)
    started = event(sim, "load.started", model="phi3")
    assert started.details == {"evict": [], "paused": [], "waited": 49.0}
    assert event(sim, "load.finished", model="phi3").details["seconds"] == 10.0


def test_at_load_wait_the_generations_are_paused_and_then_go_on() -> None:
    sim = resident("a", load_wait=120)
    start = sim.now
    long = sim.submit("a", 500)
    sim.advance(30)
    other = sim.submit("b", 5)
    sim.advance(119)
    assert sim.job is None
    sim.advance(1)
    assert isinstance(sim.job, Load)
    assert sim.job.paused == (long,)
    sim.finish()
    assert sim.ends[other].time == start + 30 + 120 + 10 + 5
    assert sim.ends[long].time == start + 500 + 10
    timing = sim.ends[long].timing
    assert timing is not None and timing.paused == 10
    assert event(sim, "request.paused", request_id=long).cause == "load of b"
    assert event(sim, "request.resumed", request_id=long).time == start + 160


def test_raise_names_the_generations_that_held_it_up() -> None:
    sim = resident("a", load_wait=120, on_load_deadline="raise")
    long = sim.submit("a", 500)
    first, second = sim.submit("b", 5), sim.submit("b", 5)
    load = sim.ask_load("b")
    sim.advance(120)
    for request in (first, second):
        error = sim.ends[request].error
        assert isinstance(error, LoadDeferredTimeout)
        assert error.held_by == ((long, "a"),)
        assert (error.model, error.waited) == ("b", 120.0)
        assert long in str(error)
    assert sim.settled[load].error is sim.ends[first].error and not sim.settled[load].ran
    assert event(sim, "load.failed").model == "b"
    sim.finish()
    assert loads(sim) == ["a"]


def test_raise_lets_a_load_begin_that_finds_nothing_active() -> None:
    sim = resident("a", load_wait=120, on_load_deadline="raise")
    sim.submit("a", 119)
    other = sim.submit("b", 5)
    sim.finish()
    assert sim.ends[other].error is None


# ---- fairness ------------------------------------------------------------------------


def test_newcomers_pass_a_deferred_load_for_the_window_only() -> None:
    sim = resident("a", fairness_window=5)
    sim.submit("a", 50)
    sim.ask_load("b")
    sim.advance(4)
    early = sim.submit("a", 1)
    assert early in sim.generations
    sim.advance(1)
    late = sim.submit("a", 1)
    assert late not in sim.generations
    job = sim.book.head()
    assert job is not None
    assert event(sim, "request.queued", request_id=late).waiting_for == ((job.id, "b"),)
    sim.finish()
    assert loads(sim) == ["a", "b"]
    timing = sim.ends[late].timing
    assert timing is not None and timing.queued == 45 + 10


def test_an_endless_flood_does_not_starve_a_load() -> None:
    sim = resident("a", fairness_window=5, load_wait=120)
    load = sim.ask_load("b")
    asked = sim.now
    sim.submit("a", 20)
    sim.cancel_job(load)
    load = sim.ask_load("c")
    for _ in range(100):
        sim.submit("a", 20)
        sim.advance(1)
    assert sim.settled[load].error is None
    began = event(sim, "load.started", model="c").time
    assert began <= asked + 10 + 5 + 20
    sim.finish()


def test_window_zero_lets_nobody_pass() -> None:
    sim = resident("a", fairness_window=0)
    sim.submit("a", 50)
    sim.ask_load("b")
    late = sim.submit("a", 1)
    assert late not in sim.generations
    sim.finish()


def test_paused_generations_get_a_turn_between_two_pauses() -> None:
    sim = resident("a", load_wait=0, fairness_window=5)
    long = sim.submit("a", 20)
    start = sim.now
    sim.ask_load("b")  # at once: load_wait is 0
    sim.advance(1)
    sim.ask_load("c")  # due now too, but asked during the pause
    sim.finish()
    paused = [e.time - start for e in sim.events if e.kind == "request.paused"]
    resumed = [e.time - start for e in sim.events if e.kind == "request.resumed"]
    assert (paused, resumed) == ([0, 15], [10, 25])
    timing = sim.ends[long].timing
    assert timing is not None and timing.paused == 20


def test_with_no_window_two_pauses_follow_each_other_at_the_next_tick() -> None:
    sim = resident("a", load_wait=0, fairness_window=0)
    sim.submit("a", 20)
    sim.ask_load("b")
    sim.advance(1)
    sim.ask_load("c")
    sim.until(sim.job_ends)
    assert isinstance(sim.job, Load) and sim.job.model == "c"
    sim.finish()


def test_one_pause_serves_every_load_that_was_due() -> None:
    sim = resident("a", load_wait=20, fairness_window=5)
    sim.submit("a", 100)
    sim.ask_load("b")
    sim.ask_load("c")
    sim.finish()
    assert kinds(sim, "request").count("paused") == 1
    assert loads(sim) == ["a", "b", "c"]


def test_a_request_for_a_fresh_model_joins_the_pause_of_the_next_load() -> None:
    sim = resident("a", load_wait=20, fairness_window=5)
    sim.submit("a", 100)
    fresh = sim.submit("b", 10)
    sim.ask_load("c")
    sim.advance(30)
    assert isinstance(sim.job, Load) and sim.job.model == "c"
    assert fresh in sim.job.paused
    sim.finish()
    timing = sim.ends[fresh].timing
    assert timing == Timing(queued=30.0, deferred=20.0, loading=10.0, paused=10.0)


def test_a_generation_that_ends_while_it_is_paused_is_charged_until_then() -> None:
    sim = resident("a", load_wait=0)
    long = sim.submit("a", 20)
    sim.ask_load("b")
    sim.advance(4)
    sim.end_generation(long, GenerationFailed("condemned"))
    timing = sim.ends[long].timing
    assert timing is not None and timing.paused == 4
    assert event(sim, "request.failed").cause == "GenerationFailed: condemned"
    sim.finish()
    assert "resumed" not in kinds(sim, "request")


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
    assert len(sim.book.jobs) == 2
    sim.cancel(second)
    assert not sim.book.jobs and "b" not in sim.book.models
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


# ---- memory --------------------------------------------------------------------------


SMALL = {"a": Footprint(4), "b": Footprint(4), "c": Footprint(4)}


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
    assert [job.kind for job in sim.book.jobs.values()] == ["unload", "load"]
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
    assert [job.kind for job in sim.book.jobs.values()] == ["load"]
    sim.advance(5)
    assert [job.kind for job in sim.book.jobs.values()] == ["unload", "load"]
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
    assert len(sim.book.jobs) == 1
    sim.cancel_job(watched)
    assert len(sim.book.jobs) == 1  # the request still needs it
    watched = sim.ask_unload("b")
    sim.cancel(large)
    assert len(sim.book.jobs) == 1  # the caller still wants it
    sim.finish()
    assert sim.settled[watched].ran and sim.residents == {"a"}


def test_asking_for_a_model_that_is_to_be_evicted_chooses_another() -> None:
    sizes = {"a": Footprint(2), "b": Footprint(4), "c": Footprint(4)}
    sim = resident("a", "b", "c", sizes=sizes, budget=13)
    running = sim.submit("a", 30, tokens=1)
    sim.submit("a", 5, tokens=3)
    assert [job.model for job in sim.book.jobs.values()] == ["b"]
    sim.advance(1)
    load = sim.ask_load("b")
    assert sim.settled[load] == Settle(load, None, ran=False)
    assert [job.model for job in sim.book.jobs.values()] == ["c"]
    sim.ask_load("c", pin=True)
    assert [job.model for job in sim.book.jobs.values()] == ["b"]
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
    assert len(sim.book.jobs) == 2
    sim.cancel_job(unload)
    assert sim.settled[load] == Settle(load, None, ran=False)
    assert sim.book.models["a"].pinned
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
    assert not sim.book.models["a"].pinned  # who wanted the pin has gone


def test_a_pending_job_whose_callers_all_went_is_dropped() -> None:
    sim = resident("a")
    sim.submit("a", 20)
    load, other, run = sim.ask_load("b"), sim.ask_load("b"), sim.ask_run()
    sim.cancel_job(load)
    sim.cancel_job(run)
    assert [job.kind for job in sim.book.jobs.values()] == ["load"]
    assert event(sim, "run.cancelled").cause == "cancelled"
    request = sim.submit("b", 1)
    sim.cancel_job(other)
    assert sim.book.jobs  # the request still wants it
    sim.finish()
    assert sim.ends[request].error is None


# ---- keep-alive ----------------------------------------------------------------------


def test_idle_models_are_unloaded_after_keep_alive() -> None:
    sim = Simulation(keep_alive=60)
    sim.submit("a", 5)
    sim.finish()
    ended = sim.now
    assert sim.guard.next_deadline() == ended + 60
    sim.advance(59)
    assert sim.residents == {"a"}
    sim.advance(2)
    assert sim.residents == set()
    assert event(sim, "unload.started").cause == "keep_alive"
    assert sim.guard.models() == [] and sim.guard.next_deadline() is None


def test_keep_alive_pauses_nobody_and_spares_the_pinned() -> None:
    sim = Simulation(keep_alive=15, load_wait=0)
    sim.ask_load("a", pin=True)
    sim.ask_load("b")
    sim.ask_load("c")
    sim.finish()
    start = sim.now
    sim.submit("c", 100)
    sim.advance(50)
    sim.submit("c", 10)
    assert not sim.book.jobs
    sim.advance(50)
    assert "paused" not in kinds(sim, "request")
    assert isinstance(sim.job, Unload) and sim.job.model == "b" and sim.now == start + 100
    sim.advance(100)
    assert sim.residents == {"a"}


def test_a_request_keeps_its_model_from_being_retired() -> None:
    sim = Simulation(keep_alive=10)
    sim.submit("a", 5)
    sim.finish()
    sim.advance(9)
    sim.submit("a", 5)
    sim.advance(10)
    assert sim.residents == {"a"} and loads(sim) == ["a"]


# ---- bounds and ends -----------------------------------------------------------------


def test_max_active_bounds_each_model_and_the_record_says_who_holds_the_places() -> None:
    sim = resident("a", "b", max_active=2)
    first, second = sim.submit("a", 5), sim.submit("a", 8)
    third = sim.submit("a", 1)
    assert event(sim, "request.queued").waiting_for == ((first, "a"), (second, "a"))
    elsewhere = sim.submit("b", 1)
    assert set(sim.generations) == {first, second, elsewhere}
    sim.advance(5)
    assert third in sim.generations
    sim.finish()


def test_the_queues_are_bounded() -> None:
    sim = resident("a", max_queue=2, max_active=1)
    running = sim.submit("a", 50)
    waiting = [sim.submit("a", 1), sim.submit("a", 1)]
    refused = sim.submit("a", 1)
    assert isinstance(sim.ends[refused].error, QueueFull)
    jobs = [sim.ask_run(), sim.ask_run()]
    over = [sim.ask_run(), sim.ask_load("b"), sim.ask_unload("a")]
    assert all(isinstance(sim.settled[job].error, QueueFull) for job in over)
    sim.finish()
    assert all(sim.ends[r].error is None for r in [running, *waiting])
    assert all(sim.settled[job].error is None for job in jobs)


def test_a_request_times_out_where_it_waits() -> None:
    sim = resident("a")
    sim.submit("a", 50)
    request = sim.submit("b", 1, timeout=20)
    assert sim.guard.next_deadline() == sim.now + 20
    sim.advance(20)
    error = sim.ends[request].error
    assert isinstance(error, RequestTimeout)
    assert "waiting to start" in str(error)
    assert not sim.book.jobs
    assert event(sim, "load.cancelled").cause == "timeout"
    sim.finish()


def test_a_request_times_out_while_it_generates() -> None:
    sim = resident("a")
    request = sim.submit("a", 50, timeout=20)
    sim.advance(20)
    assert sim.generations[request].left == 1  # told to stop, not ended yet
    sim.cancel(request)  # once is enough
    sim.finish()
    error = sim.ends[request].error
    assert isinstance(error, RequestTimeout) and "generating" in str(error)


def test_a_deadline_that_has_passed_already_starts_nothing() -> None:
    sim = resident("a")
    request = sim.submit("a", 50, timeout=0)
    assert isinstance(sim.ends[request].error, RequestTimeout)
    assert "started" not in kinds(sim, "request")


def test_the_deadline_of_an_ended_request_does_not_end_its_namesake() -> None:
    sim = resident("a")
    sim.submit("a", 18, timeout=19)
    sim.submit("a", 5, timeout=20, name="same")
    sim.advance(5)
    del sim.ends["same"]
    sim.submit("a", 50, name="same")
    sim.advance(40)
    assert "same" in sim.generations
    assert sim.guard.next_deadline() is None
    sim.finish()


def test_cancel_stops_an_active_generation_once() -> None:
    guard = Guard()
    guard.submit(0, "r", "a")
    assert guard.tick(0) == []
    job = guard._book.running
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
    guard.submit(0, "r", "a")  # the request is 1, its load would be load-2
    assert [job.id for job in guard._book.jobs.values()] == ["load-2+"]


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
    guard.submit(0, "r", "a")
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
    assert sim.book.models.keys() == {"b"} and waiting in sim.book.requests


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


@pytest.mark.parametrize(
    "options",
    [
        {"load_wait": -1},
        {"fairness_window": math.nan},
        {"keep_alive": -0.5},
        {"max_queue": 0},
        {"max_active": 0},
        {"on_load_deadline": "panic"},
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"(are|is) "):
        Guard(**options)  # type: ignore[arg-type]


def test_a_load_that_waits_for_ever_sets_no_deadline() -> None:
    sim = resident("a", load_wait=math.inf)
    sim.submit("a", 5)
    sim.ask_load("b")
    assert sim.guard.next_deadline() is None
    sim.finish()


def test_without_a_ledger_everything_fits() -> None:
    room = Unbounded()
    assert room.plan_load("a", ()) == room.plan_start("r", "a", ()) == ()
    assert room.refusal("a", ()).needed_bytes == 0


# ---- the page about it -------------------------------------------------------------------


def test_the_timeline_of_the_docs() -> None:
    """docs/guard.md, "A worked timeline"."""
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
