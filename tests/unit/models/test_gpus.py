"""Which NVIDIA GPUs MLX may use, without MLX."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_guarded_llm.back_end import installed
from mlx_guarded_llm.models import gpus
from mlx_guarded_llm.models.gpus import VARIABLE, see_one_gpu, visible_gpus


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "installed", lambda name: name == "mlx-cuda-12")


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ("0", "1")),
        ("1", ("1",)),
        ("3, GPU-ab", ("3", "GPU-ab")),
        ("2,-1,3", ("2",)),
        ("", ()),
    ],
)
def test_the_variable_decides(devices: Path, listed: str | None, expected: tuple[str, ...]) -> None:
    environ = {} if listed is None else {VARIABLE: listed}
    assert visible_gpus(environ, devices) == expected


@pytest.mark.usefixtures("cuda")
def test_none_where_there_are_no_devices(tmp_path: Path) -> None:
    assert visible_gpus({}, tmp_path / "missing") == ()


def test_none_where_mlx_has_no_cuda(devices: Path) -> None:
    if any(map(installed, gpus._BACK_ENDS)):
        pytest.skip("MLX has CUDA here")
    assert visible_gpus({VARIABLE: "0"}, devices) == ()


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("listed", "left"), [("2,3", "2"), ("2", "2"), ("", "")])
def test_one_is_left(monkeypatch: pytest.MonkeyPatch, listed: str, left: str) -> None:
    monkeypatch.setenv(VARIABLE, listed)
    assert see_one_gpu() == tuple(filter(None, listed.split(",")))
    assert os.environ[VARIABLE] == left
