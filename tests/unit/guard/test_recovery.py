"""What the guard does when an engine dies, or MLX runs out of memory: one example a rule."""

from __future__ import annotations

from mlx_guarded_llm.errors import (
    BackendClosed,
    EngineDied,
    LoadFailed,
    MemoryRefused,
    RequestTimeout,
)
from mlx_guarded_llm.guard import Fail, Guard, Load, Settle, Start, Timing, Unload
from mlx_guarded_llm.record.events import Event
from tests.unit.guard.simulation import Footprint, Simulation
from tests.unit.guard.test_guard import event, kinds, loads, resident


def outage(sim: Simulation, seconds: float = 5) -> None:
    """The engine dies, and the next one works after so many seconds."""
    sim.die(seconds)
    sim.advance(seconds)


# ---- a request that was cut off ------------------------------------------------------


def test_a_crash_costs_an_outage_and_a_load() -> None:
    sim = resident("a")
    start = sim.now
    answer = sim.submit("a", 100)
    sim.advance(30)
    sim.die(5)
    sim.finish()
    assert sim.ends[answer].time == start + 100 + 5 + 10
    assert sim.ends[answer].timing == Timing(recovering=15.0)
    cut = event(sim, "request.interrupted", request_id=answer)
    assert (cut.time, cut.cause, cut.model) == (start + 30, "SIGABRT", "a")
    assert event(sim, "request.started", request_id=answer).details == {"recovering": 15.0}


def test_the_record_says_how_many_tokens_it_has() -> None:
    record: list[Event] = []
    guard = Guard(emit=record.append)
    guard.submit(0, "r1", "a")
    guard.job_ended(1, "load-1")
    guard.submit(2, "r2", "a")
    guard.lost(3, "SIGABRT", emitted={"r1": 57})
    told = {e.request_id: e.details for e in record if e.kind == "request.interrupted"}
    assert told == {"r1": {"emitted": 57}, "r2": {}}
    guard.back(4)
    guard.job_ended(5, record[-1].job_id or "")
    guard.interrupted(6, "r2", "out of memory", emitted=3)
    assert record[-2].details == {"emitted": 3}
    assert (record[-1].kind, record[-1].request_id) == ("request.started", "r2")


def test_the_time_before_its_first_start_is_kept() -> None:
    sim = resident("a")
    sim.submit("a", 20)
    sim.advance(1)
    other = sim.submit("b", 50)  # deferred for 19 s, loads for 10 s
    sim.advance(39)
    outage(sim)
    outage(sim)  # once more, while its model comes back
    sim.finish()
    timing = sim.ends[other].timing
    assert timing == Timing(queued=29.0, deferred=19.0, loading=10.0, recovering=20.0)


def test_every_time_it_waits_to_go_on_counts() -> None:
    sim = resident("a")
    request = sim.submit("a", 50)
    for _ in range(2):
        sim.advance(10)
        sim.die(5)
        sim.advance(15)
    sim.finish()
    assert sim.ends[request].timing == Timing(recovering=30.0)


def test_a_timeout_says_that_it_generates_again() -> None:
    sim = resident("a")
    request = sim.submit("a", 50, timeout=30)
    sim.advance(1)
    outage(sim)
    sim.advance(30)
    error = sim.ends[request].error
    assert isinstance(error, RequestTimeout) and "generating" in str(error)


def test_a_pause_counts_until_the_crash() -> None:
    sim = resident("a", load_wait=0)
    long = sim.submit("a", 100)
    sim.advance(5)
    sim.ask_run()  # pauses it for 10 s
    sim.advance(4)
    assert sim.job is not None and sim.job.paused == (long,)
    sim.die(5)
    sim.finish()
    assert sim.ends[long].timing == Timing(paused=4.0, recovering=15.0)


def test_cut_off_requests_go_on_in_their_old_order_and_before_all_others() -> None:
    sim = resident("a", max_active=2)
    first, second = sim.submit("a", 50), sim.submit("a", 50)
    waiting = sim.submit("a", 50)
    sim.advance(10)
    sim.die(5)
    new = sim.submit("a", 50)
    assert list(sim.book.models["a"].waiting) == [first, second, waiting, new]
    sim.finish()
    starts = [e.request_id for e in sim.events if e.kind == "request.started"]
    assert starts == [first, second, first, second, waiting, new]


def test_a_job_that_waited_for_a_generation_waits_for_it_again() -> None:
    """Else the crash would cost the generation a load, or with little memory its model."""
    sizes = {"a": Footprint(6), "b": Footprint(6)}
    sim = resident("a", sizes=sizes, budget=10, fairness_window=5)
    sim.submit("b", 10)
    sim.finish()
    sim.submit("b", 30)
    sim.advance(1)
    load = sim.ask_load("a")  # no room until b is idle
    sim.advance(2)
    newcomer = sim.submit("b", 40)  # after the load, but within the window
    sim.advance(7)
    outage(sim)
    sim.finish()
    assert loads(sim)[-2:] == ["b", "a"]
    assert sim.ends[newcomer].error is None and sim.settled[load].ran


def test_one_that_was_told_to_stop_has_ended() -> None:
    sim = resident("a")
    cancelled, late = sim.submit("a", 50), sim.submit("a", 50, timeout=9)
    sim.advance(9)
    sim.cancel(cancelled)
    sim.die(5, reported=False)
    assert sim.ends[cancelled].error is None
    assert isinstance(sim.ends[late].error, RequestTimeout)
    assert event(sim, "request.failed", request_id=cancelled).cause == "cancelled"
    assert kinds(sim, "request").count("interrupted") == 0
    assert sim.guard.quiet  # and nobody wants the model any more


def test_it_may_end_while_it_waits_to_go_on() -> None:
    sim = resident("a")
    cancelled, late = sim.submit("a", 50), sim.submit("a", 50, timeout=20)
    sim.advance(10)
    sim.die(30)
    sim.cancel(cancelled)
    assert cancelled in sim.ends and late not in sim.ends
    sim.advance(10)
    error = sim.ends[late].error
    assert isinstance(error, RequestTimeout) and "waiting to go on" in str(error)
    assert kinds(sim, "load")[-1] == "cancelled"  # nobody wants it
    sim.finish()
    assert not sim.residents


# ---- the models ----------------------------------------------------------------------


def test_all_wanted_models_are_back_before_the_first_request_goes_on() -> None:
    """Those of cut off requests, of waiting ones, the pinned, then the load that was cut off."""
    sim = Simulation(load_wait=0)
    for model in ("idle", "waits", "b", "a"):
        sim.ask_load(model)
    sim.ask_load("pinned", pin=True)
    sim.finish()
    first, second = sim.submit("a", 50), sim.submit("b", 50)
    sim.advance(1)
    sim.ask_load("loading")
    sim.ask_load("other")
    third = sim.submit("waits", 50)
    sim.advance(4)
    assert isinstance(sim.job, Load) and sim.job.model == "loading"
    sim.die(5)
    before = len(sim.ran)
    assert sim.residents == set()
    sim.finish()
    assert loads(sim)[before - 1 :] == ["a", "b", "waits", "pinned", "loading", "other"]
    again = [e for e in sim.events if e.kind == "request.started"][-3:]
    assert [e.request_id for e in again] == [first, second, third]
    last = event(sim, "load.finished", model="loading").time
    assert [e.time for e in again] == [last, last, last + 10]  # the other load was due
    assert "idle" not in sim.residents


def test_a_pinned_model_is_pinned_again() -> None:
    sim = Simulation()
    sim.ask_load("a", pin=True)
    sim.finish()
    outage(sim)
    sim.finish()
    assert loads(sim) == ["a", "a"]
    assert sim.book.models["a"].pinned
    sim.ask_unload("a")
    sim.finish()
    outage(sim)
    assert not sim.residents and sim.guard.quiet


def test_a_pinned_model_that_does_not_come_back_harms_nobody() -> None:
    sim = Simulation()
    sim.ask_load("a", pin=True)
    sim.finish()
    outage(sim)
    sim.job_error = LoadFailed("gone from the disk")
    sim.finish()
    assert not sim.book.models
    assert sim.submit("a", 5) in sim.book.requests
    sim.finish()
    assert not sim.book.models["a"].pinned


def test_a_pinned_model_comes_back_although_its_last_request_is_cancelled() -> None:
    sim = Simulation()
    sim.ask_load("a", pin=True)
    sim.finish()
    request = sim.submit("a", 50)
    sim.advance(1)
    sim.die(5)
    sim.cancel(request)
    caller = sim.ask_load("a")
    sim.cancel_job(caller)
    sim.finish()
    assert sim.book.models["a"].pinned


def test_a_model_comes_back_for_its_weights_alone_and_its_queue_waits_as_before() -> None:
    sizes = {"a": Footprint(4), "b": Footprint(4)}
    sim = resident("a", "b", sizes=sizes, budget=14)
    running = sim.submit("a", 50, tokens=4)
    large = sim.submit("b", 5, tokens=10)  # fits only when a has left
    sim.advance(10)
    outage(sim)
    sim.finish()
    assert sim.ends[running].error is None and sim.ends[large].error is None
    assert event(sim, "request.started", request_id=running).time < sim.ends[large].time - 5


# ---- the jobs ------------------------------------------------------------------------


def test_a_load_that_was_cut_off_is_tried_again_for_all_who_wait() -> None:
    sim = resident("a")
    running = sim.submit("a", 20)
    sim.advance(1)
    caller, request = sim.ask_load("b"), sim.submit("b", 5)
    sim.advance(24)
    assert isinstance(sim.job, Load)
    sim.die(5)
    assert sim.book.jobs[sim.book.models["b"].load or ""].asked_at == sim.now - 24
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


# ---- without an engine ---------------------------------------------------------------


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
    sim.squeeze()
    sim.die(5, reported=False)
    assert isinstance(sim.ends[request].error, BackendClosed)
    assert isinstance(sim.settled[load].error, EngineDied)
    assert sim.guard.quiet and not sim.book.models
    sim.finish()
    assert loads(sim) == ["a", "b"]


def test_a_model_that_is_refused_fails_all_who_wait_for_it_and_nobody_else() -> None:
    sim = resident("a", "b")
    bad, good = sim.submit("a", 50), sim.submit("b", 50)
    sim.advance(1)
    sim.die(5)
    new, caller = sim.submit("a", 5), sim.ask_load("a")
    error = LoadFailed("it was at work in three deaths")
    sim.do(sim.guard.refuse(sim.now, "a", error))
    assert sim.ends[bad].error is sim.ends[new].error is sim.settled[caller].error is error
    sim.finish()
    assert sim.ends[good].error is None and sim.residents == {"b"}


def test_a_resident_model_that_is_refused_keeps_what_is_active() -> None:
    sim = resident("a", max_active=1)
    active, waiting = sim.submit("a", 50), sim.submit("a", 50)
    sim.do(sim.guard.refuse(sim.now, "a", LoadFailed("no")))
    assert waiting in sim.ends and active in sim.open
    sim.finish()


def test_what_does_not_fit_in_the_new_engine_is_refused_with_numbers() -> None:
    """Its size was corrected while it was in memory."""
    sim = resident("a", sizes={"a": Footprint(4)}, budget=10)
    request = sim.submit("a", 50)
    sim.advance(1)
    assert sim.ledger is not None
    sim.die(5)
    sim.ledger.know_model("a", Footprint(11))  # type: ignore[arg-type]
    sim.finish()
    assert isinstance(sim.ends[request].error, MemoryRefused)
    assert not sim.residents


def test_the_actions_after_a_crash() -> None:
    """What an owner sees, word for word."""
    guard = Guard()
    assert guard.submit(0, "r", "a") == [Load("load-1", "a")]
    assert guard.job_ended(1, "load-1") == [Start("r", "a")]
    assert guard.lost(2, "SIGABRT") == []
    assert guard.tick(3) == []
    (load,) = guard.back(4)
    assert isinstance(load, Load) and load.model == "a" and not load.evict
    assert guard.job_ended(5, load.job_id) == [Start("r", "a")]
    assert guard.cancel(6, "r")[0].request_id == "r"  # type: ignore[union-attr]
    assert guard.lost(7, "SIGABRT") == [Fail("r")]
    assert guard.back(8) == [] and guard.quiet
