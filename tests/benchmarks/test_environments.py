"""The peers' environments: made once, made anew when half made or out of date."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.peers import environments
from benchmarks.peers.environments import Environment
from benchmarks.side import CannotRun

PEER = Environment(name="peer", requirements=("peer==1.0",))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The calls of uv, which here only makes the folder."""
    calls: list[tuple[str, ...]] = []

    def uv(*arguments: str) -> None:
        calls.append(arguments)
        (tmp_path / "peer").mkdir(exist_ok=True)

    monkeypatch.setattr(environments, "_uv", uv)
    monkeypatch.setattr(environments, "environments", lambda: tmp_path)
    return calls


def test_an_environment_is_made_once(made: list[tuple[str, ...]], tmp_path: Path) -> None:
    assert PEER.python() == tmp_path / "peer" / "bin" / "python"
    assert [call[0] for call in made] == ["venv", "pip"]
    assert "peer==1.0" in made[1]
    PEER.python()
    assert len(made) == 2


def test_mlx_comes_with_the_back_end_of_this_machine(made: list[tuple[str, ...]]) -> None:
    PEER.python()
    assert made[1][-1].startswith("mlx")


def test_another_recipe_makes_it_anew(made: list[tuple[str, ...]]) -> None:
    PEER.python()
    dataclasses.replace(PEER, requirements=("peer==2.0",)).python()
    assert "peer==2.0" in made[-1]


def test_one_half_made_is_made_anew(
    made: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = environments._uv

    def fails(*arguments: str) -> None:
        whole(*arguments)
        if arguments[0] == "pip":
            raise CannotRun("no such version")

    monkeypatch.setattr(environments, "_uv", fails)
    with pytest.raises(CannotRun, match="no such version"):
        PEER.python()
    (tmp_path / "peer" / "left-over").touch()
    monkeypatch.setattr(environments, "_uv", whole)
    PEER.python()
    assert [call[0] for call in made] == ["venv", "pip"] * 2
    assert not (tmp_path / "peer" / "left-over").exists()


def test_what_uv_says_at_last_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "environments", lambda: tmp_path)
    with pytest.raises(CannotRun, match="not a valid requirement"):
        Environment(name="bad", requirements=("not a valid requirement !!",)).python()
