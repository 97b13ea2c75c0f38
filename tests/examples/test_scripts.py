"""Each example runs as it stands in the docs: a script, with models named as arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeModel

from ._examples import FOLDER, run


def test_the_page_lists_every_example() -> None:
    page = (FOLDER.parent / "start" / "examples.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        assert f"(../examples/{path.name})" in page


def test_every_example_has_its_test() -> None:
    tests = "".join(p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("test_*.py"))
    for path in FOLDER.glob("*.py"):
        assert f'"{path.stem}"' in tests


def test_the_agent(scripted: MakeModel, tmp_path: Path) -> None:
    model = scripted("It is a city.", tools=True)
    printed = run("agent_loop", model, "How many live in Paris?", cache_dir=tmp_path)
    assert "people live in" in printed and "It is a city." in printed


def test_two_models(scripted: MakeModel, tmp_path: Path) -> None:
    planner, worker = scripted("Pack, then walk."), scripted("Take a coat.")
    printed = run("two_models", planner, worker, cache_dir=tmp_path)
    assert "No load overlapped a generation." in printed


def test_a_crash(scripted: MakeModel, tmp_path: Path) -> None:
    printed = run("crash", scripted("One, two, three, four, " * 8), cache_dir=tmp_path)
    assert "[SIGABRT to" in printed and "resumed: True" in printed
    assert "The two answers are the same." in printed


@pytest.mark.parametrize("name", ["rag_langchain", "rag_llama_index"])
def test_retrieval(name: str, scripted: MakeModel, embedder: MakeModel, tmp_path: Path) -> None:
    printed = run(name, scripted("Twelve euros."), embedder(), cache_dir=tmp_path)
    assert "Twelve euros." in printed


@pytest.mark.slow
def test_extended_thinking(scripted: MakeModel, tmp_path: Path) -> None:
    said = "So " + "and so on, " * 60 + "it is 42"
    printed = run("extended_thinking", scripted(said), scripted("It is 7"), cache_dir=tmp_path)
    assert "exit codes [-6, -6, 0]" in printed and "FallbackRefused" in printed
