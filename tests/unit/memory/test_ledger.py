"""The memory ledger: sums, evictions, refusals. Bytes are small whole numbers here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_guarded_llm.errors import MemoryRefused
from mlx_guarded_llm.holder import Holder
from mlx_guarded_llm.memory import footprint as predicted
from mlx_guarded_llm.memory.ledger import Ledger
from mlx_guarded_llm.memory.rank_limit import RankLimit


@dataclass
class Footprint:
    """Stands in for `memory.footprint.Footprint`."""

    weight_bytes: int
    per_token: int = 1
    state_bytes: int = 0
    prefill_per_token: int = 0
    whole_texts: bool = False
    ranks: int = 0

    def kv_bytes(self, tokens: int) -> int:
        return self.per_token * tokens

    def prefill_bytes(self, chunk_tokens: int) -> int:
        return self.prefill_per_token * chunk_tokens


def ledger(budget: int, **weights: int) -> Ledger:
    """A ledger that knows models of these weights; all are loaded."""
    result = Ledger(budget)
    for model, weight in weights.items():
        result.know_model(model, Footprint(weight))  # type: ignore[arg-type]
        result.reserve_load(model)
    return result


def start(room: Ledger, request_id: str, model: str, tokens: int) -> None:
    room.know_request(request_id, model, tokens)
    room.reserve_start(request_id, model)


def test_weights_caches_and_the_prefix_cache_are_summed() -> None:
    room = Ledger(100, prefix_cache_bytes=7)
    room.know_model("a", Footprint(10, state_bytes=2))  # type: ignore[arg-type]
    assert (room.used_bytes, room.model_bytes("a"), room.model_bytes("unknown")) == (7, 0, 0)
    room.reserve_load("a")
    assert room.used_bytes == 17
    start(room, "r", "a", 5)
    assert (room.used_bytes, room.model_bytes("a")) == (24, 17)
    room.release_start("r")
    room.release_start("r")  # once more is nothing
    room.release_model("a")
    room.release_model("a")
    assert room.used_bytes == 7


def test_a_request_that_is_to_start_again_still_wants_what_it_wanted() -> None:
    room = ledger(20, a=10)
    start(room, "r", "a", 5)
    assert room.used_bytes == 15
    room.retract_start("r")
    assert room.used_bytes == 10
    room.release_start("r")  # it holds nothing now
    assert room.plan_start("r", "a", []) == ()
    room.know_model("a", Footprint(16))  # type: ignore[arg-type]
    assert room.plan_start("r", "a", []) is None
    assert "a with 5 tokens" in str(room.refusal("a", [], "r"))
    room.reserve_start("r", "a")
    room.release_start("r")
    assert room.used_bytes == 16
    room.forget_request("r", "a")


def test_rows_of_a_batch_are_padded_to_the_longest() -> None:
    room = ledger(100, a=10)
    start(room, "short", "a", 2)
    start(room, "long", "a", 9)
    assert room.used_bytes == 10 + 2 * 9


def test_the_largest_prefill_peak_counts_once() -> None:
    room = Ledger(1000, prefill_tokens=10)
    for model, peak in (("a", 2), ("b", 3)):
        room.know_model(model, Footprint(100, prefill_per_token=peak))  # type: ignore[arg-type]
        room.reserve_load(model)
    assert room.used_bytes == 200 + 30


def test_a_load_reserves_room_for_the_first_request() -> None:
    room = ledger(20, a=10)
    room.know_model("b", Footprint(6))  # type: ignore[arg-type]
    room.know_request("large", "b", 12)
    room.know_request("small", "b", 4)
    assert room.plan_load("b", ()) == ()
    assert room.plan_load("b", (), "small") == ()
    assert room.plan_load("b", (), "large") is None
    assert room.plan_load("b", ("a",), "large") == ("a",)
    assert room.plan_load("b", (), "unknown") == ()


def test_what_fits_evicts_nobody() -> None:
    room = ledger(20, a=10)
    room.know_model("b", Footprint(10))  # type: ignore[arg-type]
    assert room.plan_load("b", ("a",)) == ()
    start(room, "r", "a", 0)
    assert room.plan_start("r", "a", ()) == ()


def test_the_least_recently_used_leave_first() -> None:
    room = ledger(30, a=10, b=10, c=10)
    room.know_model("d", Footprint(15))  # type: ignore[arg-type]
    assert room.plan_load("d", ("c", "a", "b")) == ("c", "a")
    room.know_request("r", "b", 10)
    assert room.plan_start("r", "b", ("c", "a")) == ("c",)
    room.know_request("s", "b", 11)
    assert room.plan_start("s", "b", ("c",)) is None


def test_nobody_leaves_in_vain() -> None:
    room = ledger(20, small=2, large=12, other=6)
    room.know_model("new", Footprint(10))  # type: ignore[arg-type]
    assert room.plan_load("new", ("small", "large", "other")) == ("large",)


def test_a_running_model_is_its_own_context() -> None:
    room = ledger(20, a=10)
    start(room, "r", "a", 4)
    room.know_request("s", "a", 5)
    assert room.plan_start("s", "a", ()) == ()  # two rows of five
    room.know_request("t", "a", 6)
    assert room.plan_start("t", "a", ()) is None


def test_a_request_that_cannot_fit_alone_is_refused_with_numbers() -> None:
    room = ledger(20, a=10)
    room.know_request("r", "a", 10)
    with pytest.raises(MemoryRefused, match="a with 11 tokens") as refused:
        room.know_request("r", "a", 11)
    assert (refused.value.needed_bytes, refused.value.budget_bytes) == (21, 20)
    assert refused.value.hint


def test_a_model_that_cannot_fit_alone_is_refused_before_it_loads() -> None:
    room = Ledger(20, prefix_cache_bytes=5)
    room.know_model("a", Footprint(15))  # type: ignore[arg-type]
    room.check_model("a")
    room.know_model("a", Footprint(16))  # type: ignore[arg-type]
    with pytest.raises(MemoryRefused, match="GiB") as refused:
        room.check_model("a")
    assert refused.value.needed_bytes == 21


def spread(budget: int, *, ranks: int, limit: int) -> Ledger:
    """A ledger with two models that are spread, and one that is not."""
    room = Ledger(budget, prefix_cache_bytes=5)
    room.rank_limit = RankLimit("rank 1 on b", limit)
    for model in ("a", "b"):
        room.know_model(model, Footprint(20, ranks=ranks))  # type: ignore[arg-type]
    room.know_model("alone", Footprint(20))  # type: ignore[arg-type]
    return room


def test_what_is_spread_must_fit_at_the_tightest_rank() -> None:
    room = spread(1000, ranks=2, limit=40)  # of which 5 are for prefixes
    room.reserve_load("a")
    room.reserve_load("alone")
    room.know_request("r", "a", 50)  # 10 + 25 at each rank
    assert room.plan_start("r", "a", ()) == ()
    with pytest.raises(MemoryRefused, match=r"a with 52 tokens .* at rank 1 on b") as refused:
        room.know_request("s", "a", 52)
    assert (refused.value.needed_bytes, refused.value.budget_bytes) == (41, 40)
    room.know_request("t", "alone", 500)
    assert room.plan_start("t", "alone", ("a",)) == ()  # nothing of it is at that rank


def test_only_what_is_spread_leaves_for_what_is_spread() -> None:
    room = spread(1000, ranks=1, limit=40)
    room.reserve_load("alone")
    room.reserve_load("a")
    assert room.plan_load("b", ("alone", "a")) == ("a",)
    assert room.plan_load("b", ("alone",)) is None
    error = room.refusal("b", ("alone",))
    assert "b beside a needs" in str(error) and "at rank 1 on b" in str(error)
    assert (error.needed_bytes, error.budget_bytes) == (45, 40)
    tight = spread(30, ranks=1, limit=40)
    tight.reserve_load("a")
    assert "rank 1" not in str(tight.refusal("b", ()))  # its own budget is the tighter one


def test_a_spread_model_that_cannot_fit_at_a_rank_is_refused_before_it_loads() -> None:
    room = spread(1000, ranks=1, limit=24)
    with pytest.raises(MemoryRefused, match="rank 1 on b"):
        room.check_model("a")
    room.check_model("alone")


def test_a_refusal_names_who_stays_and_counts_each_peak_once() -> None:
    room = Ledger(30, prefix_cache_bytes=1, prefill_tokens=1)
    for model, weight in (("pinned", 10), ("idle", 10), ("new", 20)):
        room.know_model(model, Footprint(weight, prefill_per_token=2))  # type: ignore[arg-type]
    room.reserve_load("pinned")
    room.reserve_load("idle")
    room.know_request("r", "new", 5)
    error = room.refusal("new", ("idle",), "r")
    assert error.needed_bytes == 1 + 10 + 20 + 5 + 2
    assert "new with 5 tokens of context beside pinned needs" in str(error)
    assert "beside" not in str(room.refusal("new", ("idle", "pinned")))
    assert room.refusal("new", ()).needed_bytes == 1 + 10 + 10 + 20 + 2


def test_a_text_is_counted_whole_however_long() -> None:
    room = Ledger(1000, prefill_tokens=10)
    embedder = Footprint(100, per_token=0, prefill_per_token=2, whole_texts=True)
    room.know_model("e", embedder)  # type: ignore[arg-type]
    room.reserve_load("e")
    assert room.used_bytes == 100 + 2 * 10
    start(room, "short", "e", 5)
    assert room.used_bytes == 100 + 2 * 10
    assert room.needed_bytes("e", 300) == 100 + 2 * 300
    start(room, "long", "e", 300)
    assert (room.used_bytes, room.model_bytes("e")) == (100 + 2 * 300, 100)
    with pytest.raises(MemoryRefused, match="500 tokens"):
        room.know_request("longer", "e", 500)
    room.release_start("long")
    assert room.used_bytes == 100 + 2 * 10


def test_a_forgotten_request_wants_nothing() -> None:
    room = ledger(20, a=10)
    room.know_request("r", "a", 10)
    room.forget_request("r", "a")
    room.forget_request("r", "unknown")
    room.reserve_start("r", "a")
    assert room.used_bytes == 10


def test_real_footprints_are_counted_the_same_way() -> None:
    footprint = predicted.Footprint(
        weight_bytes=1000, kv_bytes_per_token=2, state_bytes=3, overhead_bytes=50
    )
    room = Ledger(10_000)
    room.know_model("a", footprint)
    room.reserve_load("a")
    start(room, "r", "a", 256)
    start(room, "s", "a", 1)
    assert room.used_bytes == 1000 + 2 * (2 * 256 + 3) + 50


def test_a_measured_footprint_corrects_the_estimate() -> None:
    room = ledger(20, a=10)
    start(room, "r", "a", 4)
    room.know_model("a", Footprint(12))  # type: ignore[arg-type]
    assert room.used_bytes == 16
    room.release_start("r")
    assert room.used_bytes == room.model_bytes("a") == 12


@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    budget=st.integers(0, 30),
    tokens=st.integers(0, 6),
    prefix=st.integers(0, 4),
    data=st.data(),
)
def test_a_plan_fits_and_no_smaller_one_does(
    weights: list[int], budget: int, tokens: int, prefix: int, data: st.DataObject
) -> None:
    room = Ledger(math.inf, prefix_cache_bytes=prefix, prefill_tokens=1)  # type: ignore[arg-type]
    names = [f"m{i}" for i in range(len(weights))]
    for name, weight in zip(names, weights, strict=True):
        room.know_model(name, Footprint(weight, prefill_per_token=weight % 3))  # type: ignore[arg-type]
    room.know_request("r", names[0], tokens)
    for name in names[1:]:
        room.reserve_load(name)
    idle = data.draw(st.permutations(names[1:]))[: data.draw(st.integers(0, len(names)))]
    room.budget_bytes = budget

    def used_without(evicted: tuple[str, ...]) -> int:
        for name in evicted:
            room.release_model(name)
        room.reserve_load(names[0])
        used = room.used_bytes + tokens
        room.release_model(names[0])
        for name in evicted:
            room.reserve_load(name)
        return used

    plan = room.plan_load(names[0], idle, "r")
    if plan is None:
        assert used_without(tuple(idle)) > budget
        return
    assert set(plan) <= set(idle) and used_without(plan) <= budget
    for spared in plan:
        assert used_without(tuple(name for name in plan if name != spared)) > budget


OTHERS = [Holder("train.py", 7, ("big",), 30), Holder("chat.py", 8, (), 10)]


def test_what_other_programs_hold_is_not_there() -> None:
    room = ledger(100, a=20, b=30)
    room.know_model("c", Footprint(40))  # type: ignore[arg-type]
    assert room.plan_load("c", ("a", "b")) == ()
    room.share(40, OTHERS)
    assert room.plan_load("c", ("a", "b")) == ("b",), "its own idle models leave first"
    assert room.copy().plan_load("c", ("a",)) is None
    refused = room.refusal("c", ("a",))
    assert refused.held_by == tuple(OTHERS) and refused.budget_bytes == 100
    assert (refused.needed_bytes, room.used_bytes, room.budget_bytes) == (70, 50, 100)
    assert "train.py (process 7)" in refused.hint and "for big" in refused.hint
    assert "serve --background" in refused.hint and "train.py" not in refused.message
    room.share(40)
    assert room.refusal("c", ("a",)).held_by == () and "7" not in room.refusal("c", ("a",)).hint
    room.share(0)
    assert room.plan_load("c", ("a",)) == ()


def test_what_never_fits_is_nobodys_fault() -> None:
    room = ledger(100, a=20)
    room.know_model("c", Footprint(101))  # type: ignore[arg-type]
    room.share(200, OTHERS)
    assert room.refusal("c", ("a",)).held_by == ()
    with pytest.raises(MemoryRefused) as refused:
        room.check_model("c")
    assert refused.value.held_by == ()
    assert room.plan_load("a", ()) is None, "others have a larger budget"


def test_what_is_wanted_stands_side_by_side() -> None:
    room = Ledger(1000, prefix_cache_bytes=5, prefill_tokens=1)
    assert room.wanted([], 8) == (0, {}) and room.wanted(["unknown"], 8) == (0, {})
    room.know_model("a", Footprint(100, prefill_per_token=3))  # type: ignore[arg-type]
    room.know_model("b", Footprint(200, prefill_per_token=7))  # type: ignore[arg-type]
    assert room.wanted([], 8) == (0, {})
    assert room.wanted(["a"], 8) == (108, {"a": 100})
    room.know_request("r1", "b", 10)
    room.know_request("r2", "b", 30)
    assert room.wanted(["a"], 8) == (5 + 100 + 260 + 7, {"a": 100, "b": 260})
    assert room.wanted(["a"], 1) == (5 + 100 + 230 + 7, {"a": 100, "b": 230})
    room.reserve_load("b")
    room.reserve_start("r1", "b")
    room.reserve_start("r2", "b")
    assert room.wanted(["b"], 1) == (room.used_bytes, {"b": 260}), "what runs is not given back"
    room.know_request("r3", "b", 700)
    assert room.wanted(["a", "b"], 8)[0] == 1000, "there is no more"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=30))
def test_the_longest_that_waits_is_known_whoever_left(steps: list[tuple[int, int]]) -> None:
    room = ledger(10**6, a=0)
    waiting: dict[str, int] = {}
    for number, tokens in steps:
        name = f"r{number}"
        if name in waiting and number % 2:
            room.forget_request(name, "a")
            del waiting[name]
        else:
            room.know_request(name, "a", tokens)
            waiting[name] = tokens
        most = len(waiting) * max(waiting.values(), default=0)
        assert room.wanted(["a"], 100) == (most, {"a": most})
        assert room.copy().wanted(["a"], 100)[0] == most
