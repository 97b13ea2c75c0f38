"""The forecast: what it says is what then happens, if everything takes as long as measured."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.guard.forecast import Forecast, Newcomer, Work, forecast
from mlx_guarded_llm.record import Event
from mlx_guarded_llm.record.speeds import Speeds
from tests.unit.guard.simulation import SMALL, Simulation

MODELS = "abc"
LOAD, UNLOAD = 10.0, 1.0  # seconds, as in the simulation
EACH = 0.5  # seconds of a token
PROMPT = 2.0  # seconds of a prompt


def measured(models: str = MODELS, *, loads: bool = True) -> Speeds:
    """Every answer has as many tokens as it may have."""
    speeds = Speeds()
    for place, model in enumerate(models):
        began = 10.0 * place - 100  # long ago, one after the other
        if loads:
            for kind, seconds in (("load", LOAD), ("unload", UNLOAD)):
                job = f"{kind} {model}"
                details = {"seconds": seconds, "bytes": 1}
                speeds.learn(Event(f"{kind}.finished", began, model, None, job, details=details))  # type: ignore[arg-type]
        speeds.learn(Event("request.started", began, model, "r"))
        speeds.learn(Event("request.first_token", began + PROMPT, model, "r"))
        details = {"prompt_tokens": 1, "completion_tokens": 2}
        end = began + PROMPT + EACH
        speeds.learn(Event("request.finished", end, model, "r", None, "length", (), details))
    return speeds


class World(Simulation):
    """A simulation whose requests take what is expected of their tokens, and models take turns."""

    def ask_tokens(self, model: str, tokens: int, **options: Any) -> str:
        return self.submit(model, PROMPT + tokens * EACH, **options)

    def work(self) -> dict[str, Work]:
        return {
            name: Work(prompt_tokens=1, max_tokens=round((self.whole[name] - PROMPT) / EACH))
            for name in self.open
        }

    def ask(self, model: str, seconds: float, **options: Any) -> str:
        name = super().ask(model, seconds, **options)
        self.whole[name] = seconds
        return name

    def __post_init__(self) -> None:
        self.whole: dict[str, float] = {}
        self.turns = True
        super().__post_init__()

    def expected(self, speeds: Speeds | None = None, *new: Newcomer) -> Forecast:
        speeds = speeds or measured()
        for event in self.events:
            speeds.learn(event)
        return forecast(
            self.guard,
            self.now,
            speeds,
            work=self.work(),
            sizes={},
            newcomers=new,
        )


def test_nothing_is_told_that_was_not_measured() -> None:
    world = World()
    name = world.ask_tokens("a", 4)
    assert world.expected(Speeds()).starts == {}
    assert world.expected(measured(loads=False)).starts == {}
    world.advance(5)
    assert world.expected(measured()).starts == {name: 5.0}


def test_behind_what_was_not_measured_nothing_is_known() -> None:
    world = World(max_active=1)
    world.ask_tokens("a", 4)
    world.until(LOAD)
    world.ask_tokens("a", 4)
    other = world.ask_tokens("b", 4)
    found = world.expected(measured("b"))
    assert other not in found.starts, "it may be paused, but it may end long before"
    assert other in world.expected(measured("ab")).starts


def test_what_runs_has_a_speed_of_its_own() -> None:
    world = World(max_active=1)
    running = world.ask_tokens("a", 100)
    world.until(LOAD + PROMPT)
    world.guard.first_token(world.now, running)
    world.advance(10 * EACH)
    other = world.ask_tokens("a", 4)
    work = world.work()
    work[running] = Work(prompt_tokens=1, max_tokens=100, emitted=10)
    speeds = Speeds()
    for event in world.events:
        speeds.learn(event)

    def expected() -> dict[str, float]:
        return forecast(world.guard, world.now, speeds, work=work, sizes={}).starts

    assert expected() == {}
    ended = {"prompt_tokens": 0, "completion_tokens": 1}
    speeds.learn(Event("request.finished", world.now, "a", "r", None, "length", (), ended))
    assert expected() == {other: 90 * EACH}


def test_models_take_turns() -> None:
    world = World(max_active=1)
    for model in "ab":
        world.ask_load(model)
    world.until(2 * LOAD)
    for model in "ab":
        world.ask_tokens(model, 8)
    other = world.ask_tokens("a", 8)
    assert world.expected().starts == {other: 2 * (PROMPT + 8 * EACH)}


def test_a_load_behind_a_generation() -> None:
    world = World()
    world.ask_tokens("a", 40)
    world.until(LOAD)
    other = world.ask_tokens("b", 4)
    assert world.expected().starts == {other: PROMPT + 40 * EACH + LOAD}


def test_the_bound_of_a_load_counts() -> None:
    world = World(load_wait=7)
    world.ask_tokens("a", 400)
    world.until(LOAD)
    other = world.ask_tokens("b", 4)
    assert world.expected().starts == {other: 7 + LOAD}
    world.advance(3)
    assert world.expected().starts == {other: 4 + LOAD}
    world.advance(9)  # the load is half done
    assert world.expected().starts == {other: LOAD - 5}


def test_a_running_load_is_as_far_as_it_says() -> None:
    world = World()
    name = world.ask_tokens("a", 4)
    world.advance(2)

    def expected(speeds: Speeds, loaded: float) -> float | None:
        for event in world.events:
            speeds.learn(event)
        found = forecast(world.guard, world.now, speeds, work=world.work(), sizes={}, loaded=loaded)
        return found.starts.get(name)

    assert expected(measured(), 0.5) == LOAD / 2
    assert expected(Speeds(), 0.25) == 6.0  # two seconds for the first quarter
    assert expected(Speeds(), 0.0) is None


def test_batch_requests_let_others_pass() -> None:
    world = World(max_active=1)
    world.ask_tokens("a", 40)
    world.until(LOAD)
    batch = world.ask_tokens("a", 10, batch=True)
    other = world.ask_tokens("a", 10)
    found = world.expected(None, Newcomer(id="new", model="a"))
    one = PROMPT + 10 * EACH
    first = PROMPT + 40 * EACH
    assert found.starts == {other: first, "new": first + one} or found.starts == {
        other: first,
        batch: first + one,
        "new": first + 2 * one,
    }
    assert found.starts[other] < found.starts["new"]


def test_a_full_queue() -> None:
    world = World(max_active=1, max_queue=2)
    world.ask_tokens("a", 8)
    world.until(LOAD)
    assert world.expected().room == 0.0
    for _ in range(2):
        world.ask_tokens("a", 8)
    one = PROMPT + 8 * EACH
    found = world.expected(None, Newcomer(id="new", model="a"))
    assert (found.room, found.starts["new"]) == (one, 3 * one)
    assert world.expected(Speeds()).room is None


def test_it_leaves_the_guard_alone() -> None:
    world = World(sizes=SMALL, budget=30, max_active=1)
    for model in "abcab":
        world.ask_tokens(model, 10)
    world.advance(12)
    twin = World(sizes=SMALL, budget=30, max_active=1)
    for model in "abcab":
        twin.ask_tokens(model, 10)
    twin.advance(12)
    for _ in range(5):
        world.expected(None, Newcomer(id="new", model="c"))
        world.advance(7)
        twin.advance(7)
    world.finish()
    twin.finish()
    assert world.events == twin.events


# ---- as it then happens ----------------------------------------------------------------

PAIR = MODELS[:2]  # turns of two are exact in floating point
STEP = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(PAIR), st.integers(1, 60), st.booleans()),
    st.tuples(st.just("pass"), st.integers(1, 30)),
    st.tuples(st.just("unload"), st.sampled_from(PAIR)),
)
RULES = st.fixed_dictionaries(
    {
        "max_active": st.integers(1, 4),
        "load_wait": st.sampled_from([0.0, 5.0, 30.0, 120.0]),
        "fairness_window": st.sampled_from([1.0, 5.0, 20.0]),
        "budget": st.sampled_from([None, 7, 9, 20]),
        "on_load_deadline": st.sampled_from(["pause", "raise"]),
    }
)


def played(rules: dict[str, Any], steps: list[Any]) -> World:
    world = World(sizes=SMALL, **rules)
    for step in steps:
        match step:
            case ("ask", model, tokens, batch):
                world.ask_tokens(model, tokens, batch=batch)
            case ("pass", seconds):
                world.advance(seconds)
            case ("unload", model):
                world.ask_unload(model)
    return world


@settings(deadline=None)
@given(RULES, st.lists(STEP, min_size=1, max_size=25))
def test_everything_measured_it_comes_true(rules: dict[str, Any], steps: list[Any]) -> None:
    """With speeds that do not change, the guard does what its copy did."""
    world = played(rules, steps)
    found, at = world.expected(), world.now
    waiting = world.open - set(world.generations)
    assert set(found.starts) <= waiting
    for seconds in found.starts.values():
        assert math.isfinite(seconds) and seconds >= 0
    world.finish()
    for name in waiting:
        starts = [e for e in world.events if e.kind == "request.started" and e.request_id == name]
        if starts:  # otherwise it did not fit, or its load was given up
            assert abs(found.starts[name] - (starts[0].time - at)) < 1e-6


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(1, 4),
    st.data(),
)
def test_more_ahead_is_never_a_shorter_wait(
    tokens: list[int], max_active: int, data: st.DataObject
) -> None:
    """Whoever is behind one of a model's queue that takes longer waits at least as long."""

    def world(lengths: list[int]) -> tuple[World, list[str]]:
        made = World(max_active=max_active, load_wait=1e6)
        made.ask_load("a")
        made.until(LOAD)
        return made, [made.ask_tokens("a", length) for length in lengths]

    place = data.draw(st.integers(0, len(tokens) - 1))
    more = [*tokens]
    more[place] += data.draw(st.integers(1, 50))
    short, names = world(tokens)
    long, others = world(more)
    before, after = short.expected().starts, long.expected().starts
    assert names == others and before.keys() == after.keys()
    assert all(before[name] <= after[name] + 1e-9 for name in before)
    behind, _ = world([*tokens, 10])
    new = Newcomer(id="new", model="a")
    alone = short.expected(None, new).starts["new"]
    assert alone <= behind.expected(None, new).starts["new"] + 1e-9


@settings(deadline=None)
@given(RULES, st.lists(STEP, min_size=1, max_size=20), st.sampled_from(["", "a", "ab"]))
def test_with_less_measured_less_is_told(
    rules: dict[str, Any], steps: list[Any], known: str
) -> None:
    world = played(rules, steps)
    whole, part = world.expected().starts, world.expected(measured(known)).starts
    assert set(part) <= set(whole)
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in part.values())
