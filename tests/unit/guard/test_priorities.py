"""Interactive work goes before batch work, which is never put off for longer than `batch_wait`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.errors import LoadFailed
from tests.unit.guard.simulation import Footprint, Simulation, loads, resident


def started(sim: Simulation) -> list[str | None]:
    return [e.request_id for e in sim.events if e.kind == "request.started"]


def test_an_interactive_request_passes_batch_requests_that_wait() -> None:
    sim = resident("a", max_active=1)
    sim.submit("a", 10)
    batch = [sim.submit("a", 5, batch=True) for _ in range(3)]
    sim.advance(1)
    interactive = [sim.submit("a", 5) for _ in range(2)]
    sim.finish()
    assert started(sim)[1:] == [*interactive, *batch]


def test_with_nothing_else_to_do_a_batch_request_starts_at_once() -> None:
    sim = resident("a")
    request = sim.submit("a", 5, batch=True)
    assert request in sim.generations


def test_a_load_for_batch_lets_another_load_pass() -> None:
    sim = resident("a", load_wait=60, fairness_window=1)
    sim.submit("a", 20)
    sim.submit("b", 1, batch=True)
    sim.advance(1)
    sim.submit("c", 1)
    sim.finish()
    assert loads(sim)[1:] == ["c", "b"]


def test_a_load_for_batch_moves_up_when_somebody_is_there_to_see_it() -> None:
    sim = resident("a", load_wait=60, fairness_window=1)
    sim.submit("a", 20)
    sim.submit("b", 1, batch=True)
    sim.advance(1)
    sim.submit("c", 1)
    sim.submit("b", 1)
    sim.advance(1)
    sim.submit("d", 1)
    sim.finish()
    assert loads(sim)[1:] == ["c", "b", "d"]


def test_a_load_for_batch_moves_up_when_it_is_asked_for() -> None:
    sim = resident("a", load_wait=60)
    sim.submit("a", 20)
    sim.submit("b", 1, batch=True)
    sim.ask_load("b")
    sim.submit("c", 1)
    sim.finish()
    assert loads(sim)[1:] == ["b", "c"]


def test_a_load_for_batch_that_is_tried_again_has_moved_up() -> None:
    sim = Simulation()
    sim.submit("a", 1, batch=True)
    sim.advance(6)
    sim.submit("a", 1)
    sim.submit("b", 1)
    sim.job_error, sim.job_again = LoadFailed("out of memory"), True
    sim.finish()
    assert loads(sim) == ["a", "a", "b"]


def test_a_load_for_batch_that_is_tried_again_comes_before_an_unload() -> None:
    sim = Simulation()
    request = sim.submit("a", 1, batch=True)
    sim.advance(6)
    unload = sim.ask_unload("a")
    sim.job_error, sim.job_again = LoadFailed("out of memory"), True
    sim.finish()
    assert sim.ends[request].error is None
    assert sim.settled[unload].ran  # before the request, which brings the model back
    assert loads(sim) == ["a", "a", "a"]


def test_a_load_for_batch_moves_up_when_its_unload_is_asked_for() -> None:
    sim = Simulation()
    request = sim.submit("a", 1)
    sim.submit("b", 1, batch=True)
    unload = sim.ask_unload("b")
    sim.advance(15)
    load = sim.ask_load("b")  # behind the unload
    sim.finish()
    assert sim.ends[request].error is None
    assert sim.settled[unload].ran and sim.settled[load].ran
    assert loads(sim) == ["a", "b", "b"]


def test_newcomers_pass_a_load_for_batch_for_longer() -> None:
    sim = resident("a", load_wait=1000, fairness_window=5, batch_wait=30)
    sim.submit("a", 100)
    sim.submit("b", 1, batch=True)
    sim.advance(34)
    passes = sim.submit("a", 1)
    assert passes in sim.generations
    sim.advance(1)
    assert sim.submit("a", 1) not in sim.generations
    sim.finish()


def test_newcomers_pass_what_is_unloaded_for_batch_for_longer() -> None:
    sizes = {"a": Footprint(4), "b": Footprint(4), "c": Footprint(2)}
    sim = resident("a", "b", "c", sizes=sizes, budget=13, load_wait=1000, fairness_window=5)
    sim.submit("a", 100)
    sim.submit("a", 1, tokens=4, batch=True)  # lacks the memory that b has
    sim.advance(34)
    passes = sim.submit("c", 1)
    assert passes in sim.generations
    sim.advance(1)
    assert sim.submit("c", 1) not in sim.generations
    sim.finish()


@pytest.mark.parametrize("batch_wait", [0, 10, 60])
def test_no_flood_starves_a_batch_request(batch_wait: int) -> None:
    sim = resident("a", max_active=1, batch_wait=batch_wait, max_queue=10_000)
    sim.submit("a", 4)
    begun = sim.now
    batch = sim.submit("a", 4, batch=True)
    while batch not in started(sim):
        sim.submit("a", 4)
        sim.advance(4)
    # Those who came before its time was up, one place among them, four seconds each.
    assert sim.now - begun <= batch_wait + 3 * 4
    sim.finish()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch_wait=st.sampled_from([0, 5, 40]),
    max_active=st.integers(1, 3),
    budget=st.none() | st.integers(8, 14),
)
def test_each_model_serves_in_the_order_that_the_priorities_give(
    seed: int, batch_wait: int, max_active: int, budget: int | None
) -> None:
    chance = random.Random(seed)
    sim = Simulation(
        sizes={model: Footprint(4) for model in "abc"} if budget else {},
        budget=budget,
        batch_wait=batch_wait,
        max_active=max_active,
        max_queue=10_000,
    )
    arrival: dict[str, float] = {}
    for _ in range(200):
        batch = chance.random() < 0.3
        name = f"r{len(arrival)}"
        arrival[name] = sim.now + (batch_wait if batch else 0)
        sim.submit(chance.choice("aaab"), chance.randint(1, 6), batch=batch, name=name)
        sim.advance(chance.choice([0, 1, 2]))
    sim.finish()
    waiting: dict[str | None, list[str]] = {"a": [], "b": []}
    for e in sim.events:
        if e.kind == "request.queued" and e.request_id:
            waiting[e.model].append(e.request_id)
        elif e.kind == "request.started" and e.request_id:
            waiting[e.model].remove(e.request_id)
            assert all(arrival[e.request_id] <= arrival[other] for other in waiting[e.model])
    assert waiting == {"a": [], "b": []}
