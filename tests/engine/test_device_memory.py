"""The wired limit is set once, by the engine alone."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.engine.residency import device_memory, residents
from mlx_guarded_llm.errors import EngineDied, InvalidRequest
from tests.conftest import MakeModel

METAL = {"device_name": "a fake one", "max_recommended_working_set_size": 48 * 10**9}


class FakeMetal:
    """MLX with a wired limit, as Metal has it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def synchronize(self) -> None:
        self.calls.append(("synchronize", 0))

    def set_wired_limit(self, limit: int) -> int:
        self.calls.append(("set_wired_limit", limit))
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> FakeMetal:
    fake = FakeMetal()
    monkeypatch.setattr(device_memory, "mx", fake)
    monkeypatch.setattr(residents, "device", lambda: {**METAL, "device": "cpu"})

    def raised_by_mlx_lm() -> int:
        return fake.set_wired_limit(-1)

    mlx_lms = importlib.import_module("mlx_lm.generate")
    monkeypatch.setattr(mlx_lms, "maybe_set_recommended_wired_limit", raised_by_mlx_lm)
    return fake


@pytest.mark.parametrize(
    ("wanted", "limit"), [("recommended", 48 * 10**9), (10**9, 10**9), (48 * 10**9, 48 * 10**9)]
)
def test_it_is_set_with_nothing_in_flight(metal: FakeMetal, wanted: Any, limit: int) -> None:
    assert device_memory.wire_memory(wanted, METAL) == limit
    assert metal.calls == [("synchronize", 0), ("set_wired_limit", limit)]


def test_it_is_left_alone(metal: FakeMetal) -> None:
    assert device_memory.wire_memory(None, METAL) == 0
    assert device_memory.wire_memory("recommended", {"device_name": "a CPU"}) == 0
    assert device_memory.wire_memory(10**9, {"device_name": "a CPU"}) == 0
    assert metal.calls == []


def test_more_than_the_device_allows(metal: FakeMetal) -> None:
    with pytest.raises(InvalidRequest, match=r"49000000000 bytes.* allows 48000000000"):
        device_memory.wire_memory(49 * 10**9, METAL)
    assert metal.calls == []


def generate(models: list[str], **options: Any) -> list[Any]:
    with Backend(isolation="thread", offline=True, memory_budget="1GB", **options) as backend:
        for model in models:
            assert backend.generate(model, "Hello", max_tokens=3).usage.completion_tokens
        return [event.details for event in backend.events() if event.kind == "engine.started"]


def test_an_engine_sets_it_once(metal: FakeMetal, tiny: MakeModel) -> None:
    (started,) = generate([tiny(), tiny(seed=1)], wired_memory="1GB")
    assert [limit for name, limit in metal.calls if name == "set_wired_limit"] == [10**9]
    assert started["wired"] == 10**9 and started["wirable"] == 48 * 10**9


def test_without_the_option_nobody_sets_it(metal: FakeMetal, tiny: MakeModel) -> None:
    (started,) = generate([tiny()])
    assert [name for name, _ in metal.calls if name == "set_wired_limit"] == []
    assert started["wired"] == 0


def test_an_engine_that_is_asked_for_too_much(metal: FakeMetal, tiny: MakeModel) -> None:
    with pytest.raises(EngineDied, match="this device allows") as caught:
        generate([tiny()], wired_memory="1TB")
    assert "recommended" in caught.value.hint


@pytest.mark.parametrize("value", ["much", 0, -1, True, 1.5])
def test_a_value_that_is_wrong(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="wired_memory"):
        Backend(wired_memory=value)
