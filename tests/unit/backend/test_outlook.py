"""When the outlook asks for a forecast, and for whom."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mlx_guarded_llm.backend import outlook as module
from mlx_guarded_llm.backend.listeners import Listeners
from mlx_guarded_llm.backend.outlook import Outlook
from mlx_guarded_llm.backend.pending import Pending
from mlx_guarded_llm.backend.requests import Request
from mlx_guarded_llm.errors import EngineDied, LoadDeferredTimeout, QueueFull
from mlx_guarded_llm.guard import Guard, GuardLimits
from mlx_guarded_llm.guard.forecast import forecast
from mlx_guarded_llm.models import ModelSpec
from mlx_guarded_llm.record import Event

SPEC = ModelSpec(name="phi3", kind="folder", location="/phi3")


class Bench:
    """A guard with one place for phi3, and an outlook on it. Every answer takes 10 s."""

    def __init__(self) -> None:
        self.guard = Guard(GuardLimits(max_active=1, max_queue=2))
        self.pending = Pending(100)
        files = {"phi3": SimpleNamespace(load_bytes=1)}
        self.outlook = Outlook(
            self.pending,
            cast(Any, SimpleNamespace(files=files)),
            Listeners(None, lambda listener, progress: None),
        )
        counts = {"prompt_tokens": 1, "completion_tokens": 2}
        for event in (
            Event("request.started", 0, "phi3", "before"),
            Event("request.first_token", 0, "phi3", "before"),
            Event("request.finished", 10, "phi3", "before", None, "length", (), counts),
        ):
            self.outlook.speeds.learn(event)
        self.guard.ask_load(0, "job", "phi3")
        self.guard.job_ended(0, "job")

    def request(self, name: str) -> Request:
        request = Request(id=name, name="phi3", spec=SPEC, put=None, expires=0.0, key="phi3")
        request.counted, request.prompt_tokens, request.max_tokens = True, 1, 1
        return request

    def ask(self, name: str) -> None:
        now = time.monotonic()
        self.pending.add(self.request(name))
        self.guard.submit(now, name, "phi3")
        self.guard.fetched(name)
        self.guard.prepared(now, name)


@pytest.fixture
def forecasts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When forecasts were made."""
    made: list[float] = []

    def counting(guard: Guard, now: float, *args: Any, **options: Any) -> Any:
        made.append(now)
        return forecast(guard, now, *args, **options)

    monkeypatch.setattr(module, "forecast", counting)
    return made


def test_one_forecast_serves_everybody(
    forecasts: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH", 1e9)
    bench = Bench()
    for name in ("first", "second", "third"):
        bench.ask(name)
    second = bench.outlook.wait(bench.guard, "second")
    third = bench.outlook.wait(bench.guard, "third")
    assert second is not None and third is not None and 0 <= second <= third
    assert len(forecasts) == 1
    assert bench.outlook.wait(bench.guard, "first") is None, "it runs"
    assert bench.outlook.wait(bench.guard, "nobody") is None


def test_they_take_a_small_share_of_the_time(
    forecasts: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARE", 1e-9)
    bench = Bench()
    for name in ("first", "second"):
        bench.ask(name)
    assert bench.outlook.wait(bench.guard, "second") is not None
    bench.ask("third")
    assert bench.outlook.wait(bench.guard, "third") is None, "not yet"
    assert len(forecasts) == 1


def test_an_attempt_is_found_by_the_name_of_its_call() -> None:
    bench = Bench()
    for name in ("first", "call.2", "caller.3"):
        bench.ask(name)
    assert bench.outlook.wait(bench.guard, "call") is not None
    assert bench.outlook.wait(bench.guard, "cal") is None


def test_a_full_queue() -> None:
    bench = Bench()
    assert bench.outlook.room(bench.guard) == 0.0
    for name in ("first", "second", "third"):
        bench.ask(name)
    error = QueueFull("full.", hint="Try again later, or raise max_queue.")
    told = bench.outlook.tell(bench.guard, error, bench.request("new"))
    assert told.retry_after is not None and told.expected_wait is not None
    assert 0 <= told.retry_after <= told.expected_wait
    assert told.hint.startswith("Try again in ") and told.hint.endswith("or raise max_queue.")


def test_a_load_that_was_deferred_too_long() -> None:
    bench = Bench()
    for name in ("first", "second"):
        bench.ask(name)
    error = LoadDeferredTimeout("late.", model="phi3", waited=1.0, held_by=())
    told = bench.outlook.tell(bench.guard, error, bench.request("new"))
    assert told.retry_after is not None and told.retry_after > 10
    assert error.retry_after is None, "the others who waited for it have it, too"
    died = EngineDied("it died.")
    assert bench.outlook.tell(bench.guard, died, bench.request("new")) is died


def test_nobody_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise RuntimeError("wrong")

    monkeypatch.setattr(module, "forecast", fails)
    bench = Bench()
    for name in ("first", "second", "third"):
        bench.ask(name)
    assert bench.outlook.wait(bench.guard, "second") is None
    error = bench.outlook.tell(
        bench.guard, QueueFull("full.", hint="Try again later."), bench.request("new")
    )
    assert (error.retry_after, error.expected_wait) == (None, None)
    assert error.hint == "Try again later."
