"""When requests time out."""

from __future__ import annotations

from mlx_guarded_llm.errors import RequestTimeout
from tests.unit.guard.simulation import event, kinds, resident


def test_a_request_times_out_where_it_waits() -> None:
    sim = resident("a")
    sim.submit("a", 50)
    request = sim.submit("b", 1, timeout=20)
    assert sim.guard.next_deadline() == sim.now + 20
    sim.advance(20)
    error = sim.ends[request].error
    assert isinstance(error, RequestTimeout)
    assert "waiting to start" in str(error)
    assert not sim.state.jobs
    assert event(sim, "load.cancelled").cause == "timeout"
    sim.finish()


def test_a_request_times_out_while_it_generates() -> None:
    sim = resident("a")
    request = sim.submit("a", 50, timeout=20)
    sim.advance(20)
    assert sim.generations[request].left == 1  # told to stop, not ended yet
    sim.cancel(request)  # once is enough
    sim.finish()
    error = sim.ends[request].error
    assert isinstance(error, RequestTimeout) and "generating" in str(error)


def test_a_deadline_that_has_passed_already_starts_nothing() -> None:
    sim = resident("a")
    request = sim.submit("a", 50, timeout=0)
    assert isinstance(sim.ends[request].error, RequestTimeout)
    assert "started" not in kinds(sim, "request")


def test_the_deadline_of_an_ended_request_does_not_end_its_namesake() -> None:
    sim = resident("a")
    sim.submit("a", 18, timeout=19)
    sim.submit("a", 5, timeout=20, name="same")
    sim.advance(5)
    del sim.ends["same"]
    sim.submit("a", 50, name="same")
    sim.advance(40)
    assert "same" in sim.generations
    assert sim.guard.next_deadline() is None
    sim.finish()
