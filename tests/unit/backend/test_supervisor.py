from __future__ import annotations

from mlx_guarded_llm.backend.supervisor import APART, CAP, LONGEST_WAIT, Restarts


def test_the_first_death_is_answered_at_once_and_each_further_one_later() -> None:
    restarts = Restarts()
    waits = [restarts.died(float(i), False) for i in range(CAP)]
    assert waits == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, None]
    assert LONGEST_WAIT == 30.0


def test_beyond_the_cap_it_is_up_to_who_asks() -> None:
    restarts = Restarts()
    for i in range(CAP):
        restarts.died(float(i), False)
    assert restarts.died(100.0, False) is None
    assert restarts.died(200.0, True) == 0.0, "one that worked ends the row"
    assert restarts.died(201.0, False) == 0.25


def test_progress_ends_the_row() -> None:
    restarts = Restarts()
    assert [restarts.died(float(i), True) for i in range(50)] == [0.0] * 50
    assert restarts.died(50.0, False) == 0.25
    assert restarts.died(51.0, True) == 0.0


def test_deaths_far_apart_are_no_row() -> None:
    """An idle engine that something ends each night never reaches the cap."""
    restarts = Restarts()
    assert [restarts.died(i * 2 * APART, False) for i in range(2 * CAP)] == [0.0] * 2 * CAP
