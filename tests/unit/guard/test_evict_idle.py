"""What the guard does when MLX runs out of memory: one example a rule."""

from __future__ import annotations

import pytest

from mlx_guarded_llm.errors import LoadDeferredTimeout, LoadFailed
from mlx_guarded_llm.guard import Load, Settle, Timing, Unload
from tests.unit.guard.simulation import Footprint, Simulation, event, kinds, loads, resident


def test_one_request_that_was_cut_off_starts_again_at_once() -> None:
    sim = resident("a", max_active=2)
    other, cut, waiting = (sim.submit("a", 50) for _ in range(3))
    sim.advance(10)
    sim.interrupt(cut)
    assert {other, cut} == set(sim.generations) and waiting in sim.open
    assert sim.residents == {"a"}
    sim.finish()
    assert sim.ends[cut].timing == Timing()
    assert kinds(sim, "request").count("interrupted") == 1


def test_one_that_is_cut_off_more_often_keeps_its_place_behind_an_older_one() -> None:
    sim = resident("a")
    first, second = sim.submit("a", 50), sim.submit("a", 50)
    for _ in range(3):
        sim.advance(1)
        sim.interrupt(second)
    sim.die(5)
    assert list(sim.state.models["a"].waiting) == [first, second]
    sim.finish()


def test_one_that_was_cut_off_while_a_job_ran_starts_after_it() -> None:
    sim = resident("a", load_wait=0)
    cut = sim.submit("a", 50)
    sim.ask_run()
    sim.advance(4)
    sim.interrupt(cut)
    sim.finish()
    assert sim.ends[cut].timing == Timing(paused=4.0, recovering=6.0)


def test_one_that_was_cut_off_passes_an_unload_of_its_model() -> None:
    sim = resident("a")
    cut = sim.submit("a", 50)
    sim.ask_unload("a")
    sim.advance(10)
    sim.interrupt(cut)
    assert cut in sim.generations
    sim.finish()
    assert loads(sim) == ["a"]


def test_idle_models_leave_before_anything_else_begins() -> None:
    sim = resident("a", "b", "c", load_wait=120)
    sim.ask_load("p", pin=True)
    sim.finish()
    start = sim.now
    cut, other = sim.submit("a", 50), sim.submit("b", 50)
    run = sim.ask_run()
    sim.advance(2)
    assert sim.guard.idle() == ["c"]
    sim.evict_idle()
    sim.interrupt(cut)
    assert isinstance(sim.job, Unload) and sim.job.model == "c"
    assert cut in sim.open and cut not in sim.generations
    late = sim.submit("b", 5)  # within the window of the run
    sim.advance(1)
    assert cut in sim.generations and late in sim.generations
    sim.finish()
    assert sim.residents == {"a", "b", "p"}
    assert sim.ends[cut].timing == Timing(recovering=1.0, paused=0.0)
    assert sim.ends[other].timing == Timing(paused=1.0)
    assert event(sim, "unload.started").time == start + 2
    assert event(sim, "unload.queued").cause == "out of memory"
    assert sim.settled[run].ran


def test_a_squeeze_joins_the_pause_of_the_load_that_failed() -> None:
    sim = resident("a", "b", load_wait=30)
    long = sim.submit("a", 100)
    caller, request = sim.ask_load("c"), sim.submit("c", 5)
    sim.advance(30)
    assert isinstance(sim.job, Load)
    sim.job_error, sim.job_again = LoadFailed("out of memory"), True
    sim.advance(10)
    assert isinstance(sim.job, Unload) and sim.job.model == "b"
    assert event(sim, "load.interrupted").cause == "LoadFailed: out of memory"
    sim.advance(1)
    assert isinstance(sim.job, Load) and sim.job.job_id == caller
    sim.finish()
    assert sim.settled[caller] == Settle(caller)
    assert sim.ends[request].error is None
    assert sim.ends[long].timing == Timing(paused=21.0)
    assert kinds(sim, "request").count("paused") == 1


def test_a_load_tried_again_keeps_its_place() -> None:
    sim = Simulation()
    first, second = sim.ask_load("a"), sim.ask_load("b")
    sim.job_error, sim.job_again = LoadFailed("out of memory"), True
    sim.finish()
    assert loads(sim) == ["a", "a", "b"]
    assert sim.settled[first].error is None and sim.settled[second].error is None


def test_what_it_did_not_evict_stays() -> None:
    sim = resident("a", sizes={"a": Footprint(6), "b": Footprint(6)}, budget=10)
    sim.ask_load("b")
    assert isinstance(sim.job, Load) and sim.job.evict == ("a",)
    back = sim.ask_load("a")  # behind it
    actions = sim.guard.job_ended(
        sim.now, sim.job.job_id, error=LoadFailed("out of memory"), left=(), again=True
    )
    assert actions[0] == Settle(back, ran=False)


def test_after_close_nothing_leaves() -> None:
    sim = resident("a")
    sim.close()
    sim.evict_idle()
    assert sim.job is None and sim.guard.quiet


@pytest.mark.parametrize("why", ["unwanted", "closed", "foreign"])
def test_what_nobody_can_use_is_not_tried_again(why: str) -> None:
    sim = Simulation()
    job = sim.ask_run() if why == "foreign" else sim.ask_load("a")
    if why == "unwanted":
        sim.cancel_job(job)
    elif why == "closed":
        sim.close()
    sim.job_error, sim.job_again = LoadFailed("out of memory"), True
    sim.finish()
    assert len(sim.ran) == 1
    assert not sim.events[-1].kind.endswith("interrupted")
    if why != "unwanted":
        assert isinstance(sim.settled[job].error, LoadFailed)


def test_models_that_are_waited_for_leave_only_if_no_others_can() -> None:
    sim = resident("a", "b", "c", load_wait=0)
    sim.ask_run()
    waiting = sim.submit("a", 5)
    assert sim.guard.idle() == ["b", "c"]
    sim.evict_idle()
    assert sim.guard.idle() == ["b", "c"]  # still, until they have left
    sim.advance(12)
    assert waiting in sim.ends or waiting in sim.generations
    sim.finish()
    sim.ask_run()
    again = sim.submit("a", 5)
    assert sim.guard.idle() == ["a"]
    sim.evict_idle()
    sim.finish()
    assert sim.ends[again].error is None and loads(sim)[-1] == "a"


def test_what_a_running_job_removes_is_not_idle() -> None:
    sizes = {"a": Footprint(6), "b": Footprint(6)}
    sim = resident("a", sizes=sizes, budget=10)
    assert sim.guard.idle() == ["a"]
    sim.ask_load("b")
    assert isinstance(sim.job, Load) and sim.job.evict == ("a",)
    assert sim.guard.idle() == []
    sim.finish()


def test_nobody_takes_back_an_unload_for_want_of_memory() -> None:
    sim = resident("a", load_wait=0)
    sim.ask_run()
    caller = sim.ask_unload("a")
    sim.evict_idle()
    sim.cancel_job(caller)
    load = sim.ask_load("a")
    assert load not in sim.settled
    sim.finish()
    assert kinds(sim, "unload") == ["queued", "deferred", "started", "finished"]
    assert sim.settled[load].ran and loads(sim) == ["a", "a"]


def test_with_raise_a_squeeze_waits_for_the_generations_up_to_load_wait() -> None:
    sim = resident("a", "b", load_wait=30, on_load_deadline="raise")
    long, cut = sim.submit("a", 100), sim.submit("a", 100)
    sim.advance(10)
    sim.evict_idle()
    sim.interrupt(cut)
    sim.advance(29)
    assert sim.job is None and cut not in sim.generations
    sim.advance(1)
    assert cut in sim.generations and long in sim.generations
    assert event(sim, "unload.failed").cause.startswith(LoadDeferredTimeout.__name__)
    sim.finish()
    assert sim.ends[cut].timing == Timing(recovering=30.0)


def test_with_raise_what_waits_behind_a_squeeze_keeps_its_own_deadline() -> None:
    sim = resident("a", "b", load_wait=30, on_load_deadline="raise")
    sim.submit("a", 100)
    sim.advance(1)
    load = sim.ask_load("c")
    sim.advance(10)
    sim.evict_idle()
    sim.advance(20)
    assert isinstance(sim.settled[load].error, LoadDeferredTimeout)
    sim.finish()


def test_a_model_whose_requests_were_cut_off_is_not_idle() -> None:
    sim = resident("a", load_wait=0)
    cut = sim.submit("a", 50)
    sim.ask_run()
    assert sim.job is not None
    sim.interrupt(cut)
    assert not sim.generations and sim.guard.idle() == []
    sim.finish()
    assert loads(sim) == ["a"]


def test_a_model_that_was_at_work_until_the_cut_is_kept_alive_from_then() -> None:
    sim = resident("a", load_wait=0, keep_alive=30)
    start = sim.now
    cut = sim.submit("a", 100)
    sim.advance(40)
    sim.ask_run()
    sim.advance(1)
    sim.interrupt(cut)
    sim.cancel(cut)
    sim.finish()
    sim.advance(60)
    assert event(sim, "unload.started").time == start + 41 + 30
