"""The numbers the guard goes by: keep-alive, bounds, and which make no sense."""

from __future__ import annotations

import math

import pytest

from mlx_guarded_llm.errors import QueueFull
from mlx_guarded_llm.guard import GuardLimits, Unload
from tests.unit.guard.simulation import Simulation, event, kinds, loads, resident

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
    assert not sim.state.jobs
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


# ---- bounds --------------------------------------------------------------------------


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
        GuardLimits(**options)  # type: ignore[arg-type]


def test_a_load_that_waits_for_ever_sets_no_deadline() -> None:
    sim = resident("a", load_wait=math.inf)
    sim.submit("a", 5)
    sim.ask_load("b")
    assert sim.guard.next_deadline() is None
    sim.finish()
