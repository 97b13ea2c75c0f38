"""How much memory there is, on machines that this one is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mlx_guarded_llm.memory import budget

GIB = 1024**3


@pytest.fixture
def ram(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with 10 GiB available; returns the folder of its cgroup."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * GIB))
    monkeypatch.setattr(budget, "_CGROUP_ROOT", tmp_path)
    return tmp_path


def test_metal_recommends_its_own_working_set() -> None:
    info = {"max_recommended_working_set_size": 12 * GIB, "total_memory": 16 * GIB}
    assert budget.default_budget(info) == 12 * GIB


def test_cuda_gets_nine_tenths_of_the_card() -> None:
    assert budget.default_budget({"total_memory": 100}) == 90


def test_the_cpu_gets_a_share_of_what_is_available(ram: Path) -> None:
    assert budget.default_budget({}) == int(10 * GIB * 0.6)


def test_a_container_without_a_limit_has_what_the_machine_has(ram: Path) -> None:
    (ram / "memory.max").write_text("max\n")
    assert budget.available_ram() == 10 * GIB


def test_a_container_has_what_is_left_of_its_limit(ram: Path) -> None:
    (ram / "memory.max").write_text(f"{8 * GIB}\n")
    assert budget.available_ram() == 8 * GIB
    (ram / "memory.current").write_text(f"{5 * GIB}\n")
    assert budget.available_ram() == 3 * GIB
    (ram / "memory.stat").write_text(f"anon {3 * GIB}\ninactive_file {2 * GIB}\n")
    assert budget.available_ram() == 5 * GIB  # file cache makes way
    (ram / "memory.current").write_text(f"{20 * GIB}\n")
    assert budget.available_ram() == 0


def test_an_older_kernel_keeps_its_limits_elsewhere(ram: Path) -> None:
    (ram / "memory").mkdir()
    (ram / "memory/memory.limit_in_bytes").write_text(str(6 * GIB))
    (ram / "memory/memory.usage_in_bytes").write_text(str(GIB))
    (ram / "memory/memory.stat").write_text("cache 0\n")
    assert budget.available_ram() == 5 * GIB


def test_this_machine_has_some() -> None:
    assert budget.available_ram() > 0


def test_only_the_cpus_budget_lacks_what_others_hold(ram: Path) -> None:
    metal = {"max_recommended_working_set_size": 12 * GIB, "device": "gpu"}
    assert budget.limits(metal).share_of_free == 0.0
    assert budget.limits({"device": "cpu"}, budget_bytes=5).share_of_free == 0.0
    assert budget.limits({"device": "cpu"}).share_of_free == 0.6
