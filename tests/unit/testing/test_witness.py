"""The witness by itself: no MLX, threads that do what they are told."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.engine import observer
from mlx_guarded_llm.testing.witness import Violation, Witness


class Puppet:
    """A thread that enters and leaves sections on command."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._entered: list[AbstractContextManager[Any]] = []

    def enter(self, section: AbstractContextManager[Any]) -> None:
        self._pool.submit(section.__enter__).result()
        self._entered.append(section)

    def leave(self) -> None:
        self._pool.submit(self._entered.pop().__exit__, None, None, None).result()

    def does(self, section: AbstractContextManager[Any]) -> None:
        self.enter(section)
        self.leave()

    @property
    def depth(self) -> int:
        return len(self._entered)

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def found() -> list[Violation]:
    return []


@pytest.fixture
def witness(found: list[Violation]) -> Witness:
    return Witness(on_violation=found.append)


@pytest.fixture
def other() -> Iterator[Puppet]:
    puppet = Puppet("other")
    yield puppet
    puppet.close()


def test_one_thread_may_nest_anything(witness: Witness, found: list[Violation]) -> None:
    with witness.load("a"), witness.evaluation("eval"), witness.step("a"):
        assert witness.is_inside() and witness.is_inside("load")
        assert not witness.is_inside("unload")
    assert not witness.is_inside()
    with witness.foreign("cell"), witness.load("b"), witness.unload("a"):
        pass
    assert found == []
    assert witness.seen == {"load": 2, "eval": 1, "step": 1, "foreign": 1, "unload": 1}


@pytest.mark.parametrize("first", ["load", "unload", "foreign", "step", "evaluation"])
@pytest.mark.parametrize("second", ["load", "unload", "foreign", "step", "evaluation"])
def test_two_threads_inside_at_once(
    witness: Witness, found: list[Violation], other: Puppet, first: str, second: str
) -> None:
    with getattr(witness, first)("a"):
        other.does(getattr(witness, second)("b"))
    assert [violation.models for violation in found] == [("b", "a")]
    other.does(getattr(witness, second)("b"))
    assert len(found) == 1, "one after the other is no overlap"


@pytest.mark.parametrize("work", ["load", "unload", "foreign"])
def test_nothing_exclusive_beside_a_running_generation(
    witness: Witness, found: list[Violation], work: str
) -> None:
    with witness.generation("a"):
        with witness.step("a"):
            pass
        with getattr(witness, work)("b"):
            pass
    assert [violation.beside for violation in found] == ["unfinished generation of a"]
    with getattr(witness, work)("b"):
        pass
    assert len(found) == 1, "an ended generation is in nobody's way"


def test_a_generation_that_has_not_stepped_yet_counts(
    witness: Witness, found: list[Violation]
) -> None:
    with witness.generation("a"), witness.load("b"):
        pass
    assert [violation.threads for violation in found] == [("MainThread", "?")]


def test_a_paused_generation_lets_a_load_pass(witness: Witness, found: list[Violation]) -> None:
    with witness.generation("a") as generation:
        generation.pause()
        with witness.load("b"):
            pass
        assert found == []
        generation.resume()
        with witness.load("b"):
            pass
    assert len(found) == 1


def test_a_step_makes_a_paused_generation_run(witness: Witness, found: list[Violation]) -> None:
    with witness.generation("a") as generation:
        generation.pause()
        with witness.step("a"):
            pass
        with witness.load("b"):
            pass
    assert len(found) == 1


def test_every_generation_must_be_paused(witness: Witness, found: list[Violation]) -> None:
    witness.generation_began("a", "1")
    witness.generation_began("b", "2")
    witness.paused(["a"])
    with witness.load("c"):
        pass
    assert [violation.models for violation in found] == [("c", "b")]
    witness.paused(["a", "b"])
    with witness.load("c"):
        pass
    assert len(found) == 1
    witness.resumed()
    witness.generation_ended("1")
    witness.generation_ended("2")
    witness.generation_ended("never began")
    with witness.load("c"):
        pass
    assert len(found) == 1


def test_the_next_token_is_in_flight_between_two_steps(
    witness: Witness, found: list[Violation], other: Puppet
) -> None:
    """A lock around each step is not enough, and that is what is shown here."""
    mine, its = witness.generation("a"), witness.generation("a")
    with mine, its:
        with witness.step("a", generation=mine):
            pass
        with witness.evaluation("item"):
            pass
        assert found == [], "the thread of a generation may evaluate between its steps"
        other.does(witness.step("a", generation=its))
        other.does(witness.evaluation("item"))
    assert [violation.entered for violation in found] == ["step of a", "eval of item"]


def test_a_generation_may_move_between_threads(
    witness: Witness, found: list[Violation], other: Puppet
) -> None:
    """As when a web framework steps a generator on a pool of threads."""
    with witness.generation("a") as generation:
        with witness.step("a", generation=generation):
            pass
        other.does(witness.step("a", generation=generation))
        with witness.step("a"):
            pass
    assert found == []


def test_the_message_names_both_sides(
    witness: Witness, found: list[Violation], other: Puppet, capsys: pytest.CaptureFixture[str]
) -> None:
    other.enter(witness.load("phi3"))
    with witness.step("llama"):
        pass
    other.leave()
    message = capsys.readouterr().err
    assert message == found[0].message + "\n"
    headline = message.splitlines()[0]
    assert headline.startswith("-[MLXGuardedWitness enter:]: failed assertion '")
    assert "step of llama on MainThread overlaps load of phi3 on other" in headline
    assert "test_witness.py" in message, "where this thread is"
    assert "thread.py" in message, "where the other thread is"
    assert "testing/witness.py" not in message


def test_an_entry_that_raises_has_not_happened(other: Puppet) -> None:
    def refuse(violation: Violation) -> None:
        raise AssertionError(violation.entered)

    witness = Witness(on_violation=refuse)
    other.enter(witness.load("b"))
    with pytest.raises(AssertionError, match="step of a"), witness.step("a"):
        pass
    assert not witness.is_inside()
    other.leave()
    with witness.step("a"):
        pass


def test_by_default_the_process_aborts() -> None:
    code = (
        "from mlx_guarded_llm.testing.witness import Witness\n"
        "witness = Witness()\n"
        "with witness.generation('a'), witness.load('b'):\n"
        "    print('never')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGABRT
    assert "load of b on MainThread overlaps unfinished generation of a" in run.stderr
    assert run.stdout == ""


def test_it_does_not_import_mlx() -> None:
    code = "import sys, mlx_guarded_llm.testing.witness; print('mlx' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


KINDS = ("load", "unload", "foreign", "step", "evaluation")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([*KINDS, *KINDS, "leave", "leave", "begin", "end", "pause", "resume"]),
            st.sampled_from("ab"),
        ),
        max_size=30,
    )
)
def test_any_interleaving_is_judged_by_the_rules(script: list[tuple[int, str, str]]) -> None:
    """An oracle that knows nothing of threads: who is inside, who is unfinished."""
    found: list[Violation] = []
    witness = Witness(on_violation=found.append)
    puppets = [Puppet(f"puppet-{number}") for number in range(3)]
    running: dict[str, bool] = {}
    stepped_by: dict[str, int | None] = {}
    expected = 0
    for actor, action, model in script:
        if action == "leave":
            if puppets[actor].depth:
                puppets[actor].leave()
        elif action == "begin":
            witness.generation_began(model, model)
            running[model], stepped_by[model] = True, None
        elif action == "end":
            witness.generation_ended(model)
            running.pop(model, None)
        elif action == "pause":
            witness.paused([model])
            running.update({model: False} if model in running else {})
        elif action == "resume":
            witness.resumed()
            running = dict.fromkeys(running, True)
        else:
            crowded = any(puppet.depth for puppet in puppets if puppet is not puppets[actor])
            in_flight = [
                name
                for name, runs in running.items()
                if runs and stepped_by[name] not in (None, actor)
            ]
            if action == "step":
                in_flight = [name for name in in_flight if name != model]
            if action in ("load", "unload", "foreign"):
                in_flight = [name for name, runs in running.items() if runs]
            expected += bool(crowded or in_flight)
            puppets[actor].enter(getattr(witness, action)(model))
            if action == "step" and model in running:
                running[model], stepped_by[model] = True, actor
        assert len(found) == expected, (actor, action, model)
    for puppet in puppets:
        while puppet.depth:
            puppet.leave()
        puppet.close()


def test_many_threads_in_turn_never_alarm(witness: Witness, found: list[Violation]) -> None:
    """The false alarm test: real threads, one lock, any order."""
    turn = threading.Lock()

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(100):
            with turn:
                if chance.random() < 0.5:
                    with witness.load(f"model-{number}"), witness.evaluation("eval"):
                        pass
                else:
                    with witness.generation(f"model-{number}"), witness.step(f"model-{number}"):
                        time.sleep(0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == []
    assert witness.seen["load"] + witness.seen["step"] == 600


class TestObserver:
    """The seam through which the engine reports."""

    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(observer, "_process_observer", None)
        monkeypatch.delenv(observer.WITNESS_VARIABLE, raising=False)

    def test_by_default_it_does_nothing(self) -> None:
        silent = observer.process_observer()
        assert type(silent) is observer.Observer and observer.process_observer() is silent
        silent.generation_began("a", "1")
        silent.began("step", "a")
        silent.computed()
        silent.ended()
        silent.paused(["a"])
        silent.resumed()
        silent.generation_ended("1")

    def test_the_witness_is_an_observer(self, witness: Witness, found: list[Violation]) -> None:
        observer.set_process_observer(witness)
        current = observer.process_observer()
        current.generation_began("a", "1")
        current.began("load", "b")
        assert witness.is_inside("load")
        current.ended()
        assert len(found) == 1 and not witness.is_inside()
        observer.set_process_observer(None)
        assert type(observer.process_observer()) is observer.Observer

    @pytest.mark.parametrize(("value", "installs"), [("1", True), ("0", False), ("", False)])
    def test_the_environment_installs_a_witness_once(
        self, monkeypatch: pytest.MonkeyPatch, value: str, installs: bool
    ) -> None:
        installed: list[Witness] = []

        def install() -> None:
            installed.append(Witness())
            observer.set_process_observer(installed[-1])

        monkeypatch.setenv(observer.WITNESS_VARIABLE, value)
        monkeypatch.setattr("mlx_guarded_llm.testing.witness.install", install)
        assert observer.process_observer() is observer.process_observer()
        assert len(installed) == installs
        assert isinstance(observer.process_observer(), Witness) == installs
