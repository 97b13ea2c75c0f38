"""Arrivals that never stop, and the bounds of docs/concepts/scheduling.md.

The simulation's `promises` check the bounds themselves at every step: `_check_turn` when a job
begins, `check_pending` while it waits, "no turn" when a generation is paused again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.errors import LoadFailed
from mlx_guarded_llm.guard import Load
from tests.unit.guard.simulation import Footprint, Simulation

HORIZON = 300
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # a seed does not shrink
MODELS = ("a", "b", "c", "d")


@dataclass
class Flood:
    """How often per second each thing arrives, and how long a generation takes."""

    requests: float
    foreign: float
    loads: float
    seconds: int
    timeouts: float
    batch: float


floods = st.builds(
    Flood,
    requests=st.sampled_from([0.3, 1.0, 3.0]),
    foreign=st.sampled_from([0.0, 0.02, 0.3]),
    loads=st.sampled_from([0.0, 0.02, 0.1]),
    seconds=st.sampled_from([2, 20, 90]),
    timeouts=st.sampled_from([0.0, 0.2]),
    batch=st.sampled_from([0.0, 0.1, 0.9]),
)


def flood(
    sim: Simulation,
    chance: random.Random,
    arrivals: Flood,
    *,
    unloads: bool = True,
    crashes: float = 0.0,
) -> None:
    """Endless arrivals, mostly for one model, for as long as the simulation lasts."""
    while sim.now < HORIZON:
        if chance.random() < crashes:
            sim.die(chance.randint(0, 8), reported=chance.random() < 0.5)
        if chance.random() < crashes:
            sim.evict_idle()
            if sim.generations:
                sim.interrupt(chance.choice(list(sim.generations)))
        if isinstance(sim.job, Load) and chance.random() < crashes:
            sim.job_error, sim.job_again = LoadFailed("out of memory"), True
        for _ in range(int(arrivals.requests + chance.random())):
            model = chance.choice("aaaaaaabcd")
            timeout = chance.randint(0, 60) if chance.random() < arrivals.timeouts else None
            length = chance.randint(1, arrivals.seconds)
            batch = chance.random() < arrivals.batch
            sim.submit(model, length, tokens=chance.randint(0, 3), timeout=timeout, batch=batch)
        if chance.random() < arrivals.loads:
            sim.ask_load(chance.choice(MODELS))
        if unloads and chance.random() < arrivals.loads / 4:
            sim.ask_unload(chance.choice(MODELS))
        if chance.random() < arrivals.foreign:
            sim.ask_run()
        sim.advance(1)
        sim.promises.check_pending()


@settings(max_examples=40, deadline=None, phases=PHASES)
@given(
    seed=st.integers(0, 2**32),
    arrivals=floods,
    load_wait=st.sampled_from([0, 3, 30, 120]),
    window=st.sampled_from([0, 1, 5, 40]),
    max_active=st.integers(1, 3),
    load_seconds=st.sampled_from([1, 10]),
)
def test_every_load_begins_in_time_whatever_arrives(
    seed: int,
    arrivals: Flood,
    load_wait: int,
    window: int,
    max_active: int,
    load_seconds: int,
) -> None:
    """With memory for all: load_wait + fairness_window + the jobs ahead."""
    sim = Simulation(
        load_wait=load_wait,
        fairness_window=window,
        max_active=max_active,
        load_seconds=load_seconds,
        max_queue=100_000,
    )
    flood(sim, random.Random(seed), arrivals, unloads=False)
    asked: dict[str, tuple[float, int]] = {}
    queued: list[float] = []
    ahead = 0
    later = sim.batch_wait if arrivals.batch else 0  # what comes until then may go first
    for event in sim.events:
        subject, verb = event.kind.split(".")
        if subject == "request" or event.job_id is None:
            continue
        if verb == "queued":
            ahead += 1
            queued.append(event.time)
            asked[event.job_id] = (event.time, ahead - 1)
        elif verb in ("finished", "failed", "cancelled"):
            ahead -= 1
        elif verb == "started":
            time, jobs = asked[event.job_id]
            jobs += sum(time < other <= time + later for other in queued)
            assert event.time - time <= load_wait + window + later + jobs * load_seconds


@settings(max_examples=40, deadline=None, phases=PHASES)
@given(
    seed=st.integers(0, 2**32),
    arrivals=floods,
    load_wait=st.sampled_from([0, 3, 30, 120]),
    window=st.sampled_from([0, 1, 5, 40]),
    max_active=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 8), min_size=4, max_size=4),
    budget=st.integers(12, 16),
    raises=st.booleans(),
)
@example(  # an unload for a batch request held up others before that request did
    seed=39388,
    arrivals=Flood(1.0, 0.02, 0.02, 2, 0.2, 0.9),
    load_wait=3,
    window=0,
    max_active=3,
    sizes=[5, 4, 1, 3],
    budget=12,
    raises=True,
)
@example(  # when a model had left, its pending load got the place of an old request
    seed=153702,
    arrivals=Flood(1.0, 0.3, 0.1, 90, 0.2, 0.1),
    load_wait=120,
    window=1,
    max_active=3,
    sizes=[5, 2, 2, 2],
    budget=12,
    raises=False,
)
@example(  # and so it waited for requests that had rightly started
    seed=2604656930,
    arrivals=Flood(0.3, 0.0, 0.02, 90, 0.0, 0.1),
    load_wait=3,
    window=40,
    max_active=3,
    sizes=[3, 1, 7, 8],
    budget=14,
    raises=False,
)
@example(  # a load had room once a smaller request for its model had come before the others
    seed=1720862774,
    arrivals=Flood(1.0, 0.3, 0.1, 90, 0.0, 0.9),
    load_wait=3,
    window=0,
    max_active=2,
    sizes=[7, 3, 5, 6],
    budget=15,
    raises=False,
)
@example(  # a load that came after an unload went before it, and found the model resident
    seed=4180058832,
    arrivals=Flood(0.3, 0.0, 0.1, 20, 0.0, 0.9),
    load_wait=30,
    window=40,
    max_active=3,
    sizes=[2, 6, 1, 7],
    budget=16,
    raises=False,
)
def test_a_load_without_memory_waits_only_for_what_was_there_before(
    seed: int,
    arrivals: Flood,
    load_wait: int,
    window: int,
    max_active: int,
    sizes: list[int],
    budget: int,
    raises: bool,
) -> None:
    sim = Simulation(
        sizes={m: Footprint(s) for m, s in zip(MODELS, sizes, strict=True)},
        budget=budget,
        load_wait=load_wait,
        fairness_window=window,
        on_load_deadline="raise" if raises else "pause",
        max_active=max_active,
        max_queue=100_000,
    )
    flood(sim, random.Random(seed), arrivals)
    for _ in range(3):  # and what is there when the flood ends, ends well
        sim.advance(1)
    sim.finish(most=100_000)


@settings(max_examples=40, deadline=None, phases=PHASES)
@given(
    seed=st.integers(0, 2**32),
    arrivals=floods,
    crashes=st.sampled_from([0.01, 0.05, 0.3]),
    load_wait=st.sampled_from([0, 3, 30, 120]),
    window=st.sampled_from([0, 1, 5, 40]),
    max_active=st.integers(1, 3),
    sizes=st.none() | st.lists(st.integers(1, 8), min_size=4, max_size=4),
    budget=st.integers(12, 16),
    raises=st.booleans(),
)
@example(  # a load that was tried again went behind an unload that came after it
    seed=231,
    arrivals=Flood(0.3, 0.0, 0.1, 2, 0.0, 0.9),
    crashes=0.05,
    load_wait=3,
    window=5,
    max_active=3,
    sizes=[2, 2, 5, 6],
    budget=13,
    raises=False,
)
def test_a_crash_adds_no_more_than_the_outage_and_the_loads_after_it(
    seed: int,
    arrivals: Flood,
    crashes: float,
    load_wait: int,
    window: int,
    max_active: int,
    sizes: list[int] | None,
    budget: int,
    raises: bool,
) -> None:
    """Both count as work ahead; but for them every bound is what it was."""
    sim = Simulation(
        sizes={m: Footprint(s) for m, s in zip(MODELS, sizes or (), strict=False)},
        budget=budget if sizes else None,
        load_wait=load_wait,
        fairness_window=window,
        on_load_deadline="raise" if raises else "pause",
        max_active=max_active,
        max_queue=100_000,
    )
    flood(sim, random.Random(seed), arrivals, crashes=crashes)
    sim.finish(most=100_000)


@pytest.mark.parametrize("window", [1, 5, 20])
def test_the_bound_is_reached(window: int) -> None:
    """It is no looser than it needs to be."""
    sim = Simulation(load_wait=30, fairness_window=window, load_seconds=10)
    sim.submit("a", 1000)
    sim.advance(10)
    first = sim.ask_load("b")
    sim.advance(1)
    second = sim.ask_load("c")  # due one second into the load of b
    sim.advance(100)
    assert sim.settled[first].ran and sim.settled[second].ran
    began = {e.model: e.time for e in sim.events if e.kind == "load.started"}
    assert began["b"] == 10 + 30
    assert began["c"] == 11 + 30 + 9 + window
    assert sim.promises.longest == window


def test_a_stream_of_loads_leaves_paused_generations_their_turns() -> None:
    sim = Simulation(load_wait=0, fairness_window=5, load_seconds=3)
    long = sim.submit("a", 50)
    sim.advance(3)
    count = 0
    while long not in sim.ends:
        sim.ask_load(f"m{count}")
        count += 1
        sim.advance(4)
    pauses = sum(e.kind == "request.paused" for e in sim.events)
    assert pauses == 50 / 5  # each turn is just a window long
    sim.finish()


def test_a_stream_of_loads_does_not_starve_a_large_request() -> None:
    sizes = {"a": Footprint(4)} | {f"m{i}": Footprint(3) for i in range(200)}
    sim = Simulation(sizes=sizes, budget=14, load_wait=0, fairness_window=5, load_seconds=3)
    sim.submit("a", 40, tokens=1)
    sim.advance(5)
    large = sim.submit("a", 5, tokens=5)
    for i in range(100):
        sim.submit(f"m{i}", 2)
        sim.advance(2)
    assert large in sim.ends and sim.ends[large].error is None
    assert sim.ends[large].time <= 150
