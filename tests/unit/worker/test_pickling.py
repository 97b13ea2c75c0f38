"""Functions on their way to the worker, and what they come to on the way back."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest

from mlx_guarded_llm.engine.protocol import JobEnded
from mlx_guarded_llm.errors import ContextOverflow, GuardedLLMError, InvalidRequest
from mlx_guarded_llm.worker import pickling
from mlx_guarded_llm.worker.pickling import (
    PackedFunction,
    pack,
    pack_outcome,
    unpack,
    unpack_outcome,
)


class Needy(Exception):
    """One that its args cannot make again."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("text")
        self.sum = a + b


def across(packed: PackedFunction) -> PackedFunction:
    copy: PackedFunction = pickle.loads(pickle.dumps(packed))
    return copy


def back(**outcome: Any) -> JobEnded:
    """What a function came to, as the parent gets it."""
    sent = pack_outcome(JobEnded(job_id="run-1", **outcome))
    got: JobEnded = pickle.loads(pickle.dumps(sent))
    return unpack_outcome(got)


def test_functions_of_all_kinds() -> None:
    base = 40

    def local() -> int:
        return base + 2

    assert across(pack(local))() == 42
    assert across(pack(lambda: [base]))() == [40]
    assert across(pack(dict))() == {}


def test_a_class_comes_back_as_the_same_class() -> None:
    class Local(Exception):
        pass

    def fn() -> None:
        raise Local("theirs", 3)

    with pytest.raises(Local) as caught:
        across(pack(fn))()
    caught.value.add_note("a note")
    error = back(error=caught.value).error
    assert type(error) is Local and error.args == ("theirs", 3)
    assert error.__notes__ == ["a note"]


@pytest.mark.parametrize("held", [threading.Lock(), threading.Thread()])
def test_what_belongs_to_this_process(held: Any) -> None:
    with pytest.raises(InvalidRequest, match="cannot go to the worker") as caught:
        pack(lambda: held)
    assert "thread" in caught.value.hint


def test_a_function_that_refers_to_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickling, "MAX_BYTES", 1000)
    large = b"x" * 1001
    with pytest.raises(InvalidRequest, match="1000 are the most"):
        pack(lambda: large)


def test_one_that_cannot_be_unpacked_there() -> None:
    with pytest.raises(InvalidRequest, match="no_such_module") as caught:
        PackedFunction(b"cno_such_module\nfn\n.")()
    assert "importable" in caught.value.hint


@pytest.mark.parametrize("value", [None, 0, "text", {"a": [1, (2.5, b"x")]}])
def test_values(value: Any) -> None:
    report = back(value=value)
    assert report.error is None
    assert unpack(report.value) == value


def test_an_array_of_numpy() -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = unpack(back(value=value).value)
    assert got.dtype == value.dtype and np.array_equal(got, value)


def test_what_is_not_packed_is_left_alone() -> None:
    value = [1]
    assert unpack(value) is value
    report = JobEnded(job_id="load-1", details={"bytes": 3})
    assert unpack_outcome(pack_outcome(report)) == report


def test_a_value_that_cannot_leave() -> None:
    report = back(value=threading.Lock())
    assert report.value is None
    assert isinstance(report.error, InvalidRequest) and "cannot leave" in str(report.error)


def test_a_value_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickling, "MAX_BYTES", 1000)
    report = back(value=b"x" * 1001)
    assert isinstance(report.error, InvalidRequest) and "are the most" in str(report.error)


def test_a_value_of_a_class_that_is_not_here() -> None:
    with pytest.raises(InvalidRequest, match="no_such_module"):
        unpack(pickling.PackedValue(b"cno_such_module\nThing\n."))


def test_errors_of_ours_keep_their_fields() -> None:
    error = back(
        error=ContextOverflow("long", prompt_tokens=9, context_window=8, hint="Shorten it.")
    ).error
    assert isinstance(error, ContextOverflow)
    assert (error.prompt_tokens, error.context_window, error.hint) == (9, 8, "Shorten it.")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ZeroDivisionError("x")])
def test_errors_of_python(error: BaseException) -> None:
    got = back(error=error).error
    assert type(got) is type(error) and got.args == error.args


@pytest.mark.parametrize("error", [ValueError(threading.Lock()), Needy(1, 2)])
def test_an_error_that_cannot_cross_is_named(error: Exception) -> None:
    error.add_note("On the MLX thread: ...")
    got = back(error=error).error
    assert type(got) is GuardedLLMError
    assert type(error).__name__ in str(got) and "On the MLX thread" in str(got)


def test_an_error_that_only_the_worker_can_read() -> None:
    report = JobEnded(job_id="run-1", error=pickling._PackedError(b"not a pickle", "what it was"))
    assert str(unpack_outcome(report).error) == "what it was"
