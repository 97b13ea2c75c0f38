"""What goes on after an engine died: requests that were cut off, and their models."""

from __future__ import annotations

from mlx_guarded_llm.errors import LoadFailed, MemoryRefused, RequestTimeout
from mlx_guarded_llm.guard import Fail, Guard, Load, Start, Timing
from mlx_guarded_llm.record.events import Event
from tests.unit.guard.simulation import (
    Footprint,
    Simulation,
    event,
    kinds,
    loads,
    outage,
    resident,
    submit,
)

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
    submit(guard, 0, "r1", "a")
    guard.job_ended(1, "load-1")
    submit(guard, 2, "r2", "a")
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
    assert list(sim.state.models["a"].waiting) == [first, second, waiting, new]
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


def test_the_actions_after_a_crash() -> None:
    """What an owner sees, word for word."""
    guard = Guard()
    assert submit(guard, 0, "r", "a") == [Load("load-1", "a")]
    assert guard.job_ended(1, "load-1") == [Start("r", "a")]
    assert guard.lost(2, "SIGABRT") == []
    assert guard.tick(3) == []
    (load,) = guard.back(4)
    assert isinstance(load, Load) and load.model == "a" and not load.evict
    assert guard.job_ended(5, load.job_id) == [Start("r", "a")]
    assert guard.cancel(6, "r")[0].request_id == "r"  # type: ignore[union-attr]
    assert guard.lost(7, "SIGABRT") == [Fail("r")]
    assert guard.back(8) == [] and guard.quiet


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
    assert sim.state.models["a"].pinned
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
    assert not sim.state.models
    assert sim.submit("a", 5) in sim.state.requests
    sim.finish()
    assert not sim.state.models["a"].pinned


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
    assert sim.state.models["a"].pinned


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


# ---- a model that does not come back -------------------------------------------------


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
