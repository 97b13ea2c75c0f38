"""What may begin, and when: one example a rule. Times are seconds on the guard's clock."""

from __future__ import annotations

from mlx_guarded_llm.errors import GenerationFailed, LoadDeferredTimeout
from mlx_guarded_llm.guard import Load, Timing
from tests.unit.guard.simulation import event, kinds, loads, resident

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
    job = sim.state.head()
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
