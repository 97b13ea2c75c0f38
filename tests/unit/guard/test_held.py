"""A model whose load is not prepared: it waits, and holds up nobody."""

from __future__ import annotations

from mlx_guarded_llm.errors import HostUnavailable
from mlx_guarded_llm.guard import Fail, Guard, Load, Start
from mlx_guarded_llm.record.events import Event
from tests.unit.guard.simulation import submit


def cut_off() -> tuple[Guard, list[Event]]:
    """A guard without an engine; it had a request for "spread" and one for "b"."""
    record: list[Event] = []
    guard = Guard(emit=record.append)
    submit(guard, 0, "r", "spread")
    guard.job_ended(1, "load-1")
    submit(guard, 2, "s", "b")
    guard.ended(3, "r")
    guard.job_ended(4, "load-2")
    submit(guard, 5, "r2", "spread")
    guard.lost(6, "SIGKILL")
    guard.hold("spread")
    return guard, record


def test_others_come_back_before_a_model_that_is_held() -> None:
    guard, record = cut_off()
    (load,) = guard.back(7)
    assert isinstance(load, Load) and load.model == "b"
    assert guard.job_ended(8, load.job_id) == [Start("s", "b")]
    assert guard.held() == ["spread"]
    deferred = [event for event in record if event.kind == "load.deferred"][-1]
    assert (deferred.model, deferred.cause, deferred.waiting_for) == ("spread", "preparing", ())
    assert guard.release(9, "spread") == []  # a load waits for generations, as always
    _, (load,) = guard.ended(10, "s")
    assert isinstance(load, Load) and load.model == "spread"
    assert guard.job_ended(11, load.job_id) == [Start("r2", "spread")]


def test_it_may_be_refused_while_it_is_held() -> None:
    guard, _ = cut_off()
    error = HostUnavailable("rank 1 is away.")
    assert guard.refuse(7, "spread", error) == [Fail("r2", error)]
    assert guard.release(7, "spread") == []
    assert [type(action) for action in guard.back(8)] == [Load]
    assert not guard.held()


def test_a_look_ahead_takes_it_for_prepared() -> None:
    guard, _ = cut_off()
    fork, _ = guard.fork()
    assert not fork.held() and guard.held() == ["spread"]
