from __future__ import annotations

import os
import signal

import pytest

from mlx_guarded_llm.errors import ModelNotFound, RequestTimeout
from mlx_guarded_llm.results import Chunk

from ..conftest import ANSWER, FakeBackend, Run, last_chunk


def test_the_conversation_is_sent_along(backend: FakeBackend, run: Run) -> None:
    done = run("chat", "tiny", "--system", "Short.", stdin="Where?\n\nReally?\n/quit\nno\n")
    assert done.exit_code == 0
    assert done.stdout == "Paris it is.\n" * 2
    assert "tiny is ready: 1 MB, 2,048 tokens of context" in done.stderr
    assert backend.asked[1][1] == [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Paris it is."},
        {"role": "user", "content": "Really?"},
    ]


def test_reset_and_switching(backend: FakeBackend, run: Run) -> None:
    run("chat", "tiny", stdin="One\n/reset\nTwo\n/model other\nThree\n")
    assert [(model, len(messages)) for model, messages, _ in backend.asked] == [
        ("tiny", 1),
        ("tiny", 1),
        ("other", 3),
    ]


def test_a_model_that_cannot_be_had_changes_nothing(backend: FakeBackend, run: Run) -> None:
    backend.load_error = ModelNotFound("there is no model named 'nope'.")
    done = run("chat", "tiny", stdin="One\n/model nope\nTwo\n")
    assert done.exit_code == 0
    assert "error: there is no model named 'nope'." in done.stderr
    assert "going on with tiny" in done.stderr
    assert [model for model, _, _ in backend.asked] == ["tiny", "tiny"]


def test_a_question_that_failed_is_forgotten(backend: FakeBackend, run: Run) -> None:
    backend.scripts = [[RequestTimeout("too late.")], ANSWER]
    done = run("chat", "tiny", stdin="One\nTwo\n")
    assert done.exit_code == 0
    assert "error: too late." in done.stderr
    assert backend.asked[1][1] == [{"role": "user", "content": "Two"}]


def test_who_answered_and_a_crash_are_told(backend: FakeBackend, run: Run) -> None:
    told = last_chunk(served_model="other", fallback=True, resumed=True)
    backend.scripts = [[Chunk(text="Paris"), told], ANSWER]
    done = run("chat", "tiny", stdin="One\nTwo\n")
    note = "note: answered by other in place of tiny, resumed after a crash."
    assert done.stderr.count(note) == 1 and done.stderr.count("note:") == 1


def test_ctrl_c_stops_only_the_answer(backend: FakeBackend, run: Run) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    backend.scripts = [[Chunk(text="Par"), press, last_chunk("cancelled")], ANSWER]
    done = run("chat", "tiny", stdin="One\nTwo\n")
    assert done.exit_code == 0
    assert done.stdout == "Par\nParis it is.\n"
    assert backend.asked[1][1][1] == {"role": "assistant", "content": "Par"}


def test_an_unknown_command_shows_the_known_ones(backend: FakeBackend, run: Run) -> None:
    done = run("chat", "tiny", stdin="/what\n/model\n")
    assert done.stderr.count("/model NAME") == 3
    assert not backend.asked


def test_ctrl_c_in_the_first_load_says_so_and_leaves(
    backend: FakeBackend, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "load", _interrupted)
    done = run("chat", "tiny", stdin="Hi\n")
    assert done.exit_code == 130
    assert done.stderr == "note: cancelled; tiny is not loaded.\n"
    assert backend.closed and not backend.asked


def test_ctrl_c_in_a_switch_goes_on_with_the_model_it_has(
    backend: FakeBackend, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = backend.load
    monkeypatch.setattr(
        backend, "load", lambda model, **how: (load if model == "tiny" else _interrupted)(model)
    )
    done = run("chat", "tiny", stdin="/model other\nHi\n")
    assert done.exit_code == 0, done.stderr
    assert "cancelled; going on with tiny" in done.stderr
    assert backend.asked[0][0] == "tiny"


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
