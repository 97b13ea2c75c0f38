from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from mlx_guarded_llm.backend import ModelInfo, RequestStatus
from mlx_guarded_llm.cli.facts import AnswerFacts, LoadFacts
from mlx_guarded_llm.models import Progress


@dataclass
class Asked:
    """A backend that says what it is told to say."""

    found: RequestStatus | None = None
    busy: list[str] = field(default_factory=list)

    def status(self, request_id: str) -> RequestStatus | None:
        assert request_id == "r"
        return self.found

    def models(self) -> list[ModelInfo]:
        common: dict[str, Any] = {"state": "resident", "pinned": False, "waiting": 0}
        common |= {"memory_bytes": 0, "context_window": 0, "fingerprint": "", "idle_seconds": 0.0}
        return [ModelInfo(name=n, active=n in self.busy, **common) for n in ("noise", "paris")]


def status(state: Any, **more: Any) -> RequestStatus:
    return RequestStatus(request_id="r", model="/models/phi3", state=state, **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("mlx_guarded_llm.cli.facts.time.monotonic", lambda: now[0])
    return now


def test_of_an_answer(clock: list[float]) -> None:
    backend = Asked()
    told = AnswerFacts(cast(Any, backend), "/models/phi3")
    assert told.look() == "phi3"
    told.request_id = "r"
    words = "/models/phi3 waits to be loaded behind /models/llama"
    backend.found = status("waiting", words=words, expected_wait=40.2)
    assert told.look() == "phi3 waits to be loaded behind llama, about 40 s"
    told.update(Progress("load", 500_000_000, 2_000_000_000))
    assert told.look() == "loading phi3, 25%, 500 MB of 2 GB"
    told.update(Progress("prefill", 512, 1024))
    assert told.look() == "reading the prompt phi3, 50%"
    told.update(Progress("prefill", 1024, 1024, over=True))
    backend.found = status("running", words="phi3 reads the prompt")
    assert told.look() == "phi3 reads the prompt"
    backend.found = status("running", tokens=1)
    assert told.look() == "phi3: 1 token"
    clock[0] += 2.0
    backend.found = status("running", tokens=41)
    assert told.look() == "phi3: 20.5 tokens/s, 41 tokens"


def test_a_speed_is_that_of_the_last_seconds(clock: list[float]) -> None:
    backend = Asked()
    told = AnswerFacts(cast(Any, backend), "phi3")
    told.request_id = "r"
    for second in range(10):
        clock[0] = second
        backend.found = status("running", tokens=1 + second * (2 if second < 5 else 4))
        shown = told.look()
    assert shown == "phi3: 4.0 tokens/s, 37 tokens"
    backend.found = status("paused", tokens=37, words="phi3 stands still while another model loads")
    assert told.look() == "phi3 stands still while another model loads"
    clock[0] += 60
    backend.found = status("running", tokens=38, resumed=True)
    assert told.look() == "phi3: 38 tokens, resumed after a crash"


def test_of_a_load() -> None:
    backend = Asked()
    told = LoadFacts(cast(Any, backend), "phi3")
    assert told.look() == "starting phi3"
    backend.busy = ["noise", "paris"]
    assert told.look() == "phi3 waits to be loaded behind noise and paris"
    told.update(Progress("download", 5_000_000, None))
    assert told.look() == "downloading phi3, 5 MB"
