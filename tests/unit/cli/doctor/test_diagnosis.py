from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mlx_guarded_llm.backend import Health, ModelInfo, RequestStatus
from mlx_guarded_llm.cli.doctor.checks import Check
from mlx_guarded_llm.cli.doctor.diagnosis import Seen, diagnose
from mlx_guarded_llm.holder import Holder
from mlx_guarded_llm.record import Event

WELL = Health(engine="working", running=1, memory_bytes=5, budget_bytes=100)


def checked(health: Health = WELL, **seen: Any) -> dict[str, Check]:
    return {check.name: check for check in diagnose(Seen(health=health, **seen))}


def model(name: str, state: str = "resident", **fields: Any) -> ModelInfo:
    return ModelInfo(
        name=name, state=state, pinned=False, active=0, waiting=0, memory_bytes=1,
        context_window=1, fingerprint="", idle_seconds=None, **fields,
    )  # fmt: skip


def load(time: float, name: str, *, evict: Sequence[str] = ()) -> list[Event]:
    job = f"load-{time}"
    return [
        Event("load.queued", time, model=name, job_id=job),
        Event("load.started", time, model=name, job_id=job, details={"evict": list(evict)}),
        Event("load.finished", time + 0.5, model=name, job_id=job, details={"seconds": 0.5}),
    ]


def answer(name: str, *, queued: float, waiting: float, prefill: float) -> list[Event]:
    times = (queued, queued + waiting, queued + waiting + prefill, queued + waiting + prefill + 2)
    kinds = ("queued", "started", "first_token", "finished")
    return [
        Event(f"request.{kind}", time, model="m", request_id=name,  # type: ignore[arg-type]
              details={"completion_tokens": 21} if kind == "finished" else {})
        for kind, time in zip(kinds, times, strict=True)
    ]  # fmt: skip


def test_a_server_that_is_well() -> None:
    found = checked()
    assert all(check.ok for check in found.values())
    assert found["queue"].text == "1 running, 0 waiting"
    assert found["memory"].text == "5 B of 100 B promised"
    assert not found["memory"].hint


def test_who_waits_for_whom() -> None:
    health = Health(engine="working", running=1, waiting=5, oldest_waiting=3.0, budget_bytes=1)
    waiting = [
        RequestStatus(
            request_id=f"r{number}",
            model="phi3",
            state="waiting",
            words="phi3 waits to be loaded behind llama",
            expected_wait=40.0,
        )
        for number in range(5)
    ]
    running = RequestStatus(request_id="king", model="llama", state="running", words="answers")
    check = checked(health, requests=[running, *waiting])["queue"]
    assert check.ok
    assert "r0: phi3 waits to be loaded behind llama (about 40 s more)" in check.text
    assert "2 more" in check.text
    assert "king" not in check.text


@pytest.mark.parametrize(
    ("health", "name", "words"),
    [
        (Health(engine="working", waiting=1, oldest_waiting=100, budget_bytes=1), "queue", "100 s"),
        (Health(engine="working", waiting=9, full=True, room=5.0), "queue", "It is full"),
        (Health(engine="working", stalled=90.0), "engine", "no progress for 90.0 s"),
        (Health(engine="failed"), "engine", "it has failed"),
    ],
)
def test_what_is_wrong_now(health: Health, name: str, words: str) -> None:
    check = checked(health)[name]
    assert not check.ok
    assert words in check.text
    assert check.hint


def test_thin_memory_counts_other_programs() -> None:
    holder = Holder("python", 7, ("qwen",), 90)
    check = checked(Health(engine="working", memory_bytes=5, budget_bytes=100, held_by=(holder,)))
    assert "process 7" in check["memory"].text
    assert "mlx-guarded fit" in check["memory"].hint


def test_models_that_push_each_other_out() -> None:
    events = [e for i in range(3) for e in [*load(i * 10, "a", evict=["b"]),
                                            *load(i * 10 + 5, "b", evict=["a"])]]  # fmt: skip
    check = checked(events=events, now=30.0)["loads"]
    assert not check.ok
    assert check.text.startswith("6 loads, 6.0 a minute: a and b push each other out of memory")
    assert "loading took 3.00 s" in check.text
    assert "mlx-guarded fit a b" in check.hint
    old = checked(events=events, now=1000.0)["loads"]
    assert old.ok, "what happened long ago does not count"
    assert checked(events=[*load(0, "a"), *load(5, "b", evict=["a"])], now=9.0)["loads"].ok


def test_the_load_that_waited_longest() -> None:
    events = [
        Event("load.queued", 0.0, model="phi3", job_id="j"),
        Event("load.deferred", 1.0, model="phi3", job_id="j", waiting_for=(("king", "llama"),)),
    ]
    check = checked(events=events, now=101.0)["deferred"]
    assert "phi3 longest: 100 s, behind king (llama)" in check.text
    assert "load_wait" in check.hint


def test_deaths_and_quarantine() -> None:
    died = Event("engine.died", 10.0, model="bad", details={"how": "SIGABRT"})
    found = checked(
        events=[died], now=15.0, models=[model("bad", "quarantined", crashes=3, cause="SIGABRT")]
    )
    assert (
        found["deaths"].text
        == "the engine died 1 time, the last time 5.00 s ago (SIGABRT, with bad)"
    )
    assert "mlx-guarded forgive bad" in found["model"].hint
    assert not found["deaths"].ok and not found["model"].ok


@pytest.mark.parametrize(
    ("details", "words", "hint"),
    [
        ({"device": "EPYC"}, "EPYC", ""),
        ({"device": "M4", "wirable": 10, "wired": 0}, "nothing wired", "wired_memory"),
        ({"device": "M4", "wirable": 10, "wired": 5}, "5 B wired", ""),
    ],
)
def test_what_it_computes_on(details: dict[str, Any], words: str, hint: str) -> None:
    check = checked(events=[Event("engine.started", 0.0, details=details)], now=1.0)["device"]
    assert words in check.text
    assert hint in check.hint if hint else not check.hint


@pytest.mark.parametrize(
    ("waiting", "prefill", "hint"),
    [(30.0, 1.0, "is waiting"), (1.0, 30.0, "reading prompts"), (0.0, 1.0, "")],
)
def test_where_the_time_goes(waiting: float, prefill: float, hint: str) -> None:
    events = answer("r", queued=0.0, waiting=waiting, prefill=prefill)
    check = checked(events=events, now=40.0)["time"]
    assert check.text.startswith("of 1 answer: ")
    assert "10.0 tokens/s each" in check.text
    assert hint in check.hint if hint else not check.hint


def test_a_key_that_may_not_see_what_happened() -> None:
    found = checked(events=None)
    assert "admin" in found["record"].hint
    assert "loads" not in found
