"""Where a request goes, for any state of a cluster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_guarded_ray.routing import ModelAt, ReplicaView, Wanted, cost, rank

GB = 10**9
NAMES = st.sampled_from("abcdef")
MODELS = st.builds(
    ModelAt,
    bytes=st.integers(1, 4).map(lambda n: n * GB),
    resident=st.booleans(),
    active=st.integers(0, 40),
    waiting=st.integers(0, 5),
    pinned=st.booleans(),
    idle=st.floats(0, 1000),
)


@st.composite
def clusters(draw: st.DrawFn) -> list[ReplicaView]:
    count = draw(st.integers(1, 6))
    return [
        ReplicaView(
            f"replica-{number}",
            budget=draw(st.sampled_from([0, 3 * GB, 6 * GB, 12 * GB])),
            models=draw(st.dictionaries(NAMES, MODELS, max_size=4)),
        )
        for number in range(count)
    ]


WANTED = st.builds(
    Wanted,
    model=NAMES,
    bytes=st.integers(1, 4).map(lambda n: n * GB),
    avoid=st.frozensets(st.sampled_from([f"replica-{n}" for n in range(6)]), max_size=2),
)


def first(wanted: Wanted, *replicas: ReplicaView) -> str:
    return rank(wanted, replicas)[0].name


@given(clusters(), WANTED)
def test_every_replica_is_ranked_once_whatever_their_order(
    cluster: list[ReplicaView], wanted: Wanted
) -> None:
    ranked = rank(wanted, cluster)
    assert sorted(r.name for r in ranked) == sorted(r.name for r in cluster)
    assert rank(wanted, cluster[::-1]) == ranked


@given(clusters(), WANTED)
def test_no_model_is_loaded_where_something_runs_while_an_idle_replica_could_take_it(
    cluster: list[ReplicaView], wanted: Wanted
) -> None:
    chosen = rank(wanted, cluster)[0]
    if wanted.model in chosen.models or chosen.idle:
        return
    could = [
        r for r in cluster if r.idle and r.can_hold(wanted.bytes) and r.name not in wanted.avoid
    ]
    assert not could


@given(clusters(), WANTED)
def test_a_replica_that_has_the_model_is_left_only_for_an_idle_one_that_is_far_sooner(
    cluster: list[ReplicaView], wanted: Wanted
) -> None:
    usable = [r for r in cluster if r.name not in wanted.avoid]
    have = [r for r in usable if wanted.model in r.models]
    chosen = rank(wanted, cluster)[0]
    if not have:
        return
    soonest = min(cost(r, wanted) for r in have)
    if chosen in have:
        assert cost(chosen, wanted) == soonest
    else:
        assert chosen.idle
        assert cost(chosen, wanted) < soonest


@given(clusters(), WANTED)
def test_one_that_failed_is_asked_only_if_all_did_or_nobody_else_could(
    cluster: list[ReplicaView], wanted: Wanted
) -> None:
    chosen = rank(wanted, cluster)[0]
    others = [r for r in cluster if r.name not in wanted.avoid]
    could = [r for r in others if wanted.model in r.models or r.can_hold(wanted.bytes)]
    if could:
        assert chosen.name not in wanted.avoid


def test_the_model_is_where_it_was() -> None:
    has = ReplicaView("has", 4 * GB, {"a": ModelAt(2 * GB, active=1)})
    empty = ReplicaView("empty", 4 * GB)
    assert first(Wanted("a", 2 * GB), empty, has) == "has"


def test_it_is_loaded_where_it_fits_without_evicting() -> None:
    full = [ReplicaView(f"full-{n}", 3 * GB, {"a": ModelAt(2 * GB)}) for n in range(5)]
    assert first(Wanted("b", 2 * GB), *full, ReplicaView("room", 3 * GB)) == "room"


def test_an_idle_replica_evicts_rather_than_that_a_busy_one_stops() -> None:
    busy = ReplicaView("busy", 9 * GB, {"a": ModelAt(2 * GB, active=1)})
    idle = ReplicaView("idle", 3 * GB, {"c": ModelAt(2 * GB)})
    assert first(Wanted("b", 2 * GB), busy, idle) == "idle"


def test_a_model_that_fits_only_one_replica_goes_there_though_it_is_busy() -> None:
    large = ReplicaView("large", 9 * GB, {"a": ModelAt(2 * GB, active=1)})
    assert first(Wanted("b", 8 * GB), ReplicaView("small", 4 * GB), large) == "large"


def test_a_model_in_demand_spreads() -> None:
    here = ModelAt(2 * GB, active=8, waiting=24)
    hot = ReplicaView("hot", 4 * GB, {"a": here}, answer=5.0, load_rate=GB, max_active=8)
    idle = ReplicaView("idle", 4 * GB, load_rate=GB)
    assert first(Wanted("a", 2 * GB), hot, idle) == "idle"
    slow = ReplicaView("idle", 4 * GB, load_rate=GB / 100)
    assert first(Wanted("a", 2 * GB), hot, slow) == "hot"


def test_nobody_passes_a_load_while_another_replica_has_nothing_to_do() -> None:
    here = {"a": ModelAt(2 * GB, active=1)}
    waits = {"c": ModelAt(2 * GB, resident=False, waiting=1)}
    idle = ReplicaView("idle", 3 * GB, {"b": ModelAt(2 * GB)}, load_rate=GB)
    assert first(Wanted("a", 2 * GB), ReplicaView("has", 3 * GB, here), idle) == "has"
    assert first(Wanted("a", 2 * GB), ReplicaView("has", 3 * GB, here | waits), idle) == "idle"


def test_what_is_promised_beside_the_models_leaves_less_room() -> None:
    models = {"a": ModelAt(GB)}
    assert ReplicaView("r", 3 * GB, models, beside=GB).fits(GB)
    assert not ReplicaView("r", 3 * GB, models, beside=GB).fits(2 * GB)


@pytest.mark.parametrize("model", ["a", "b", "c", "d"])
def test_replicas_that_are_alike_are_each_the_home_of_some_models(model: str) -> None:
    alike = [ReplicaView(f"r{n}", 3 * GB, {"x": ModelAt(2 * GB)}) for n in range(8)]
    home = first(Wanted(model, 2 * GB), *alike)
    assert home == first(Wanted(model, 2 * GB), *alike[::-1])
    homes = {first(Wanted(f"{model}{n}", 2 * GB), *alike) for n in range(100)}
    assert len(homes) == 8
