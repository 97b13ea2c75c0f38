"""How the process of another rank is started: with a GPU of its own, where that is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_guarded_llm.errors import HostUnavailable
from mlx_guarded_llm.models import gpus
from mlx_guarded_llm.models.hosts import Host
from mlx_guarded_llm.worker.child.ranks import RankProcess, _command


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter that tells which GPUs it sees, and ends."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "sees ${gpus.VARIABLE}" >&2\nexit 3\n')
    script.chmod(0o755)
    return str(script)


def start(host: Host, gpus: tuple[str, ...]) -> RankProcess:
    return RankProcess(1, host, True, "", gpus, lambda rank: None)


def said(host: Host) -> str:
    """What the process of rank 1 wrote before it ended."""
    rank = start(host, ("4", "GPU-b"))
    with pytest.raises(HostUnavailable) as caught:
        rank.answer(None)
    rank.end(0)
    return caught.value.message


@pytest.mark.parametrize(("gpu", "sees"), [(None, "4"), (0, "4"), (1, "GPU-b")])
def test_it_sees_its_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, python: str, gpu: int | None, sees: str
) -> None:
    monkeypatch.setenv(gpus.VARIABLE, "4")  # what rank 0 left itself
    host = Host(ssh="127.0.0.1", python=python, gpu=gpu)
    assert said(host).endswith(f"It wrote: sees {sees}")


def test_there_must_be_one(python: str) -> None:
    with pytest.raises(HostUnavailable, match=r"GPU 1; MLX can use 1 here"):
        start(Host(ssh="127.0.0.1", python=python, gpu=1), ("4",))


def test_on_another_machine_its_own_numbers_count() -> None:
    command = _command(Host(ssh="other", gpu=1, python="/opt/python"), here=False)
    assert command[-1].startswith(f"env {gpus.VARIABLE}=1 /opt/python ")
