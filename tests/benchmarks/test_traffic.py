"""What is asked of two models, and what is read off the answers."""

from __future__ import annotations

import psutil
import pytest

from benchmarks.cases.crash import _gap
from benchmarks.cases.traffic import ONE_AT_A_TIME, alternating, mixed, swaps
from benchmarks.side import Ask, Heard, Setup, Side


class Silent(Side):
    """A side that is never opened."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def open(self, setup: Setup) -> None:
        raise NotImplementedError

    def ask(self, ask: Ask) -> Heard:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def processes(self) -> list[psutil.Process]:
        return []


def heard(*pieces: float, began: float = 0.0) -> Heard:
    return Heard(began=began, pieces=pieces, ended=pieces[-1], tokens=len(pieces), text="")


def test_models_take_turns() -> None:
    asks = alternating(8)(Silent("a"))
    assert [ask.model for ask in asks] == ["large", "small"] * 3


def test_a_mix_is_the_same_on_every_side_and_in_every_round_but_for_the_prompts() -> None:
    traffic = mixed(20, within=4.0)
    first, second = traffic(Silent("a")), traffic(Silent("a"))
    assert traffic(Silent("b")) == first
    assert [(a.model, a.max_tokens, a.after) for a in first] == [
        (a.model, a.max_tokens, a.after) for a in second
    ]
    assert not {str(a.messages) for a in first} & {str(a.messages) for a in second}


def test_swaps_are_counted_by_the_order_of_first_pieces() -> None:
    asks = alternating(8, 4)(Silent("a"))
    answers = [heard(1.0), heard(3.0), heard(2.0), heard(4.0)]
    assert swaps(Silent(ONE_AT_A_TIME[0]), asks, answers, "large") == {"swaps": 1}
    assert swaps(Silent(ONE_AT_A_TIME[0]), asks, answers, "small") == {"swaps": 2}


def test_swaps_of_a_side_that_does_not_show_them_are_not_told() -> None:
    asks = alternating(8, 2)(Silent("a"))
    assert swaps(Silent("another"), asks, [heard(1.0), heard(2.0)], "large") == {}


def test_pieces_that_were_on_their_way_at_a_crash_do_not_count_as_its_end() -> None:
    assert _gap(heard(1.0, 2.0, 3.1, 8.0, 9.0), struck=3.0) == pytest.approx(5.0)
