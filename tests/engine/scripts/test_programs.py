"""Programs without a server that share the memory of a machine, and are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Catalog
from mlx_guarded_llm.backend import runtime_folder
from mlx_guarded_llm.errors import MemoryRefused
from tests.conftest import MakeModel
from tests.engine._scripts import ROOT

SCRIPT = """
import sys
from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import MemoryRefused

budget, model = int(sys.argv[1]), sys.argv[2]
with Backend(isolation="thread", offline=True, prefix_cache=0, memory_budget=budget) as backend:
    backend.run(int)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            backend.generate(model, "Hello", max_tokens=8)
        except MemoryRefused as error:
            print("refused:", *[holder.pid for holder in error.held_by], flush=True)
        else:
            print("holds", flush=True)
"""


class Program:
    """One that answers with its model each time it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self.said() == "ready"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of all programs, with what was measured."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def size(cache: Path, tiny: MakeModel) -> int:
    """What one program claims for its model and request. What was measured counts from then on."""
    for _ in range(2):
        with Backend(**options(2**30, cache), count_others=False) as backend:
            backend.generate(tiny(), "Hello", max_tokens=8)
            (used, _) = backend.memory()
    return used


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """In which these programs find each other."""
    monkeypatch.setenv(runtime_folder.VARIABLE, str(tmp_path / "run"))
    monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", str(cache))
    return tmp_path / "run" / "programs"


@pytest.fixture
def programs(folder: Path, size: int, tmp_path: Path, tiny: MakeModel) -> Iterator[list[Program]]:
    """Two whose engines work, with a budget for two and a half models in all."""
    (tmp_path / "program.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "program.py"), str(size * 5 // 2), tiny()]
    with ExitStack() as ends:
        started = [
            ends.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
                )
            )
            for _ in range(2)
        ]
        for process in started:
            ends.callback(process.kill)
        yield [Program(process) for process in started]


def options(budget: int, cache: Path) -> dict[str, Any]:
    catalog = Catalog(cache_dir=cache)
    sizes = {"memory_budget": budget, "prefix_cache": 0}
    return {"isolation": "thread", "catalog": catalog, "offline": True, **sizes}


def test_three_programs_and_a_kill(
    folder: Path, size: int, programs: list[Program], cache: Path, tiny: MakeModel
) -> None:
    """Whoever comes first has the last memory; what a closed or killed one held is there again."""
    given = options(size * 5 // 2, cache)
    with Backend(**given) as backend:
        backend.generate(tiny(), "Hello", max_tokens=8)
        for program in programs:
            program.go()
        said = {program.said(): program for program in programs}
        winner = said.pop("holds")
        ((words, loser),) = said.items()
        assert words.startswith("refused:") and str(os.getpid()) in words.split()
    loser.go()
    assert loser.said() == "holds"
    winner.go()
    assert winner.said() == "holds"

    with Backend(**given | {"isolation": "process"}) as backend:
        with pytest.raises(MemoryRefused) as caught:
            backend.generate(tiny(), "Hello", max_tokens=8)
        error, pids = caught.value, {program.process.pid for program in programs}
        assert {holder.pid for holder in error.held_by} == pids
        assert {holder.program for holder in error.held_by} == {"program.py"}
        assert all(tiny() in holder.models and holder.bytes > 0 for holder in error.held_by)
        assert "other programs hold" in error.message and str(min(pids)) in error.hint
        assert error.needed_bytes <= error.budget_bytes == size * 5 // 2
        assert {holder.pid for holder in backend.health().held_by} == pids
        (failed,) = [event for event in backend.events() if event.kind == "request.failed"]
        assert failed.details["held_by"] == [holder._asdict() for holder in error.held_by]
        with pytest.raises(MemoryRefused) as caught:
            backend.load(tiny())
        assert {holder.pid for holder in caught.value.held_by} == pids

        loser.kill()
        assert backend.generate(tiny(), "Hello", max_tokens=8).text
        assert [holder.pid for holder in backend.health().held_by] == [winner.process.pid]
        assert len(list(folder.glob("*.json"))) == 2
        winner.go()
        assert winner.said() == "holds", "what it has claimed stays its own"


def test_who_counts_nobody_is_not_counted(
    folder: Path, size: int, cache: Path, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(size, cache)
    with Backend(**given, count_others=False) as backend:
        backend.load(tiny())
        assert not list(folder.glob("*.json"))
    monkeypatch.setenv("MLX_GUARDED_COUNT_OTHERS", "0")
    with Backend(**given) as backend:
        backend.load(tiny())
        assert not list(folder.glob("*.json"))
