from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.engine.pulse import Work
from mlx_guarded_llm.worker.watchdog import FIRST, PATIENCE, Vital, Watchdog

STALL = 60.0


def watch(vital: Vital, *, until: float, beats: bool) -> tuple[float, str]:
    """Look every second from 0 on; returns when it was taken for hung, or `until`, and why."""
    watchdog, now = Watchdog(STALL), 0.0
    while now < until:
        why = watchdog.look(now, dataclasses.replace(vital, beat=now) if beats else vital)
        if why:
            return now, why
        now += 1.0
    return until, ""


@pytest.mark.parametrize("work", ["", "load", "unload", "run", "step"])
def test_a_process_that_stands_still_is_found_whatever_it_did(work: Work) -> None:
    vital = Vital(beat=0.0, work=work, model="phi3", since=0.0, longest=100.0)
    when, why = watch(vital, until=1000.0, beats=False)
    assert when == 61.0
    assert why.startswith("no sign of life for 61 s while ")


@pytest.mark.parametrize("work", ["load", "unload", "step"])
def test_work_without_progress_is_found_though_its_process_lives(work: Work) -> None:
    vital = Vital(beat=0.0, work=work, model="phi3", since=0.0, longest=0.05)
    when, why = watch(vital, until=1000.0, beats=True)
    assert when == 61.0
    assert why.startswith("no progress for 61 s while ") and why.endswith("phi3 (limit 60 s)")


def test_the_limit_grows_with_the_measured_pace() -> None:
    vital = Vital(beat=0.0, work="step", model="llama-70b", since=0.0, longest=10.0)
    when, why = watch(vital, until=1000.0, beats=True)
    assert when == PATIENCE * 10.0 + 1
    assert why == "no progress for 201 s while generating with llama-70b (limit 200 s)"


def test_the_first_piece_of_a_work_has_longer() -> None:
    vital = Vital(beat=0.0, work="step", model="phi3", since=0.0)
    when, why = watch(vital, until=1000.0, beats=True)
    assert when == FIRST * STALL + 1 and why


@pytest.mark.parametrize("work", ["", "run"])
def test_idleness_and_a_users_function_have_no_limit(work: Work) -> None:
    vital = Vital(beat=0.0, work=work, since=0.0, longest=0.01)
    assert watch(vital, until=100_000.0, beats=True) == (100_000.0, "")


def test_progress_counts_from_when_the_work_went_on() -> None:
    vital = Vital(beat=0.0, work="load", model="phi3", since=500.0, longest=1.0)
    assert watch(vital, until=1000.0, beats=True)[0] == 561.0


def test_exactly_at_the_limit_is_not_hung() -> None:
    watchdog = Watchdog(STALL)
    vital = Vital(beat=0.0, work="step", model="phi3", since=0.0, longest=1.0)
    for now in (0.0, 30.0, 60.0):
        assert watchdog.look(now, vital) == ""
    assert watchdog.look(60.5, vital)


def test_times_of_the_worker_may_lie_ahead_of_ours() -> None:
    vital = Vital(beat=100.0, work="step", model="phi3", since=100.0, longest=1.0)
    assert Watchdog(STALL).look(99.0, vital) == ""


class TestWhenNobodyLooked:
    def test_a_worker_that_slept_with_us_is_given_its_time_anew(self) -> None:
        watchdog = Watchdog(STALL)
        vital = Vital(beat=0.0, work="step", model="phi3", since=0.0, longest=1.0)
        for now in (0.0, 30.0, 10_000.0):
            assert watchdog.look(now, vital) == ""
        for second in range(60):
            assert watchdog.look(10_001.0 + second, vital) == ""
        assert watchdog.look(10_061.0, vital)

    def test_the_first_look_proves_nothing(self) -> None:
        vital = Vital(beat=0.0, since=0.0)
        assert Watchdog(STALL).look(1_000.0, vital) == ""

    @settings(deadline=None)
    @given(
        stall=st.sampled_from([0.5, 5.0, 60.0]),
        sleeps=st.lists(st.booleans(), max_size=200),
        lengths=st.lists(st.floats(0.51, 1e6), min_size=1, max_size=5),
    )
    def test_no_sleep_of_the_machine_ends_a_healthy_worker(
        self, stall: float, sleeps: list[bool], lengths: list[float]
    ) -> None:
        """It goes on at every look, but may be seen late after a sleep."""
        watchdog, now = Watchdog(stall), 1000.0
        vital = Vital(beat=now, work="step", model="phi3", since=now, longest=1e-3)
        for i, sleep in enumerate(sleeps):
            now += lengths[i % len(lengths)] * stall if sleep else watchdog.interval
            assert watchdog.look(now, vital) == ""
            vital = dataclasses.replace(vital, beat=now, since=now)


@settings(deadline=None)
@given(
    stall=st.floats(0.1, 20.0),
    longest=st.floats(0.0, 5.0),
    beats=st.booleans(),
    gaps=st.lists(st.floats(0.5, 1.0), min_size=1, max_size=20),
)
def test_a_hang_is_found_in_time_and_not_before(
    stall: float, longest: float, beats: bool, gaps: list[float]
) -> None:
    """With looks at least every `interval`, however uneven."""
    watchdog, now = Watchdog(stall), 0.0
    limit = max(stall, PATIENCE * longest) if longest else FIRST * stall
    limit = limit if beats else stall
    vital = Vital(beat=0.0, work="step", model="phi3", since=0.0, longest=longest)
    for gap in itertools.cycle(gaps):
        seen = dataclasses.replace(vital, beat=now) if beats else vital
        assert bool(watchdog.look(now, seen)) == (now > limit)
        if now > limit:
            break
        now += gap * watchdog.interval
    assert now <= limit + watchdog.interval
