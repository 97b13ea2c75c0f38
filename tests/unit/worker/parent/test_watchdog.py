from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.engine.observer import Work
from mlx_guarded_llm.worker.parent.watchdog import FIRST, PATIENCE, Watchdog
from mlx_guarded_llm.worker.status_page import Preparation, WorkerStatus

STALL = 60.0


def watch(status: WorkerStatus, *, until: float, beats: bool) -> tuple[float, str]:
    """Look every second from 0 on; returns when it was taken for hung, or `until`, and why."""
    watchdog, now = Watchdog(STALL), 0.0
    while now < until:
        why = watchdog.look(now, dataclasses.replace(status, heartbeat=now) if beats else status)
        if why:
            return now, why
        now += 1.0
    return until, ""


@pytest.mark.parametrize("work", ["", "load", "unload", "run", "step"])
def test_a_process_that_stands_still_is_found_whatever_it_did(work: Work) -> None:
    status = WorkerStatus(heartbeat=0.0, work=work, model="phi3", since=0.0, longest=100.0)
    when, why = watch(status, until=1000.0, beats=False)
    assert when == 61.0
    assert why.startswith("no sign of life for 61 s while ")


@pytest.mark.parametrize("work", ["load", "unload", "step"])
def test_work_without_progress_is_found_though_its_process_lives(work: Work) -> None:
    status = WorkerStatus(heartbeat=0.0, work=work, model="phi3", since=0.0, longest=0.05)
    when, why = watch(status, until=1000.0, beats=True)
    assert when == 61.0
    assert why.startswith("no progress for 61 s while ") and why.endswith("phi3 (limit 60 s)")


def test_the_limit_grows_with_the_measured_pace() -> None:
    status = WorkerStatus(heartbeat=0.0, work="step", model="llama-70b", since=0.0, longest=10.0)
    when, why = watch(status, until=1000.0, beats=True)
    assert when == PATIENCE * 10.0 + 1
    assert why == "no progress for 201 s while generating with llama-70b (limit 200 s)"


def test_the_first_piece_of_a_work_has_longer() -> None:
    status = WorkerStatus(heartbeat=0.0, work="step", model="phi3", since=0.0)
    when, why = watch(status, until=1000.0, beats=True)
    assert when == FIRST * STALL + 1 and why


@pytest.mark.parametrize("work", ["", "run"])
def test_idleness_and_a_users_function_have_no_limit(work: Work) -> None:
    status = WorkerStatus(heartbeat=0.0, work=work, since=0.0, longest=0.01)
    assert watch(status, until=100_000.0, beats=True) == (100_000.0, "")


def test_progress_counts_from_when_the_work_went_on() -> None:
    status = WorkerStatus(heartbeat=0.0, work="load", model="phi3", since=500.0, longest=1.0)
    assert watch(status, until=1000.0, beats=True)[0] == 561.0


def test_exactly_at_the_limit_is_not_hung() -> None:
    watchdog = Watchdog(STALL)
    status = WorkerStatus(heartbeat=0.0, work="step", model="phi3", since=0.0, longest=1.0)
    for now in (0.0, 30.0, 60.0):
        assert watchdog.look(now, status) == ""
    assert watchdog.look(60.5, status)


def test_times_of_the_worker_may_lie_ahead_of_ours() -> None:
    status = WorkerStatus(heartbeat=100.0, work="step", model="phi3", since=100.0, longest=1.0)
    assert Watchdog(STALL).look(99.0, status) == ""


class TestWhenNobodyLooked:
    def test_a_worker_that_slept_with_us_is_given_its_time_anew(self) -> None:
        watchdog = Watchdog(STALL)
        status = WorkerStatus(heartbeat=0.0, work="step", model="phi3", since=0.0, longest=1.0)
        for now in (0.0, 30.0, 10_000.0):
            assert watchdog.look(now, status) == ""
        for second in range(60):
            assert watchdog.look(10_001.0 + second, status) == ""
        assert watchdog.look(10_061.0, status)

    def test_the_first_look_proves_nothing(self) -> None:
        status = WorkerStatus(heartbeat=0.0, since=0.0)
        assert Watchdog(STALL).look(1_000.0, status) == ""

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
        status = WorkerStatus(heartbeat=now, work="step", model="phi3", since=now, longest=1e-3)
        for i, sleep in enumerate(sleeps):
            now += lengths[i % len(lengths)] * stall if sleep else watchdog.interval
            assert watchdog.look(now, status) == ""
            status = dataclasses.replace(status, heartbeat=now, since=now)


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
    status = WorkerStatus(heartbeat=0.0, work="step", model="phi3", since=0.0, longest=longest)
    for gap in itertools.cycle(gaps):
        seen = dataclasses.replace(status, heartbeat=now) if beats else status
        assert bool(watchdog.look(now, seen)) == (now > limit)
        if now > limit:
            break
        now += gap * watchdog.interval
    assert now <= limit + watchdog.interval


def test_preparing_without_an_end_is_found_and_named() -> None:
    stuck = Preparation("phi3", "ticket-1", 0.0)
    status = WorkerStatus(heartbeat=0.0, preparing=(Preparation("llama", "ticket-2", 100.0), stuck))
    watchdog = Watchdog(STALL)
    for now in range(0, 121, 10):
        assert watchdog.look(float(now), dataclasses.replace(status, heartbeat=float(now))) == ""
    why = watchdog.look(120.5, dataclasses.replace(status, heartbeat=120.5))
    assert why == "no progress for 120 s while preparing a request for phi3 (limit 120 s)"
    assert watchdog.stuck == stuck


def test_it_tells_for_how_long_nothing_has_moved() -> None:
    watchdog = Watchdog(STALL)
    watchdog.look(0.0, WorkerStatus(heartbeat=0.0))
    working = WorkerStatus(heartbeat=20.0, work="step", model="phi3", since=8.0, longest=1.0)
    watchdog.look(20.0, working)
    assert watchdog.stalled == 12.0
    watchdog.look(21.0, dataclasses.replace(working, heartbeat=21.0, work=""))
    assert watchdog.stalled == 0.0
    watchdog.look(25.0, dataclasses.replace(working, heartbeat=21.0, work=""))
    assert watchdog.stalled == 4.0
