"""The executor: order within a key, keys side by side, and cancelling what takes too long."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from mlx_guarded_llm.engine.prompt.keyed_executor import KeyedExecutor, Task, TaskCancelled

TIMEOUT = 30.0  # seconds; only a hang takes so long
Work = Callable[[Task], None]


class Made:
    """An executor whose work is functions, and what came of each: a name, or "cancelled NAME"."""

    def __init__(self, threads: int = 3, timeout: float = TIMEOUT) -> None:
        self.ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.executor: KeyedExecutor[Work] = KeyedExecutor(self._do, threads, timeout)

    def _do(self, work: Work, place: int, task: Task) -> None:
        told = task.name
        try:
            try:
                work(task)
            finally:
                self.executor.end_task(task)
        except TaskCancelled:
            told = f"cancelled {task.name}"
        except ValueError:
            told = f"failed {task.name}"
        self.ended.put(told)

    def next(self) -> str:
        return self.ended.get(timeout=TIMEOUT)


def nothing(task: Task) -> None:
    pass


def forever(task: Task) -> None:
    task.cancellable = True
    while True:
        pass


def test_work_of_one_key_is_done_in_order() -> None:
    made = Made()
    names = [str(n) for n in range(50)]
    for name in names:
        made.executor.put("a", name, nothing)
    assert [made.next() for _ in names] == names


def test_one_key_does_not_wait_for_another() -> None:
    made, go = Made(), threading.Event()

    def slow(task: Task) -> None:
        assert go.wait(TIMEOUT)

    made.executor.put("a", "slow", slow)
    made.executor.put("a", "behind", nothing)
    made.executor.put("b", "beside", nothing)
    assert made.next() == "beside"
    go.set()
    assert [made.next(), made.next()] == ["slow", "behind"]


def test_more_keys_than_threads() -> None:
    made = Made(threads=2)
    for n in range(20):
        made.executor.put(n, str(n), nothing)
    assert {made.next() for _ in range(20)} == {str(n) for n in range(20)}


def test_what_raises_ends_no_thread() -> None:
    made = Made(threads=1)

    def raising(task: Task) -> None:
        raise ValueError

    made.executor.put("a", "x", raising)
    made.executor.put("a", "y", nothing)
    assert [made.next(), made.next()] == ["failed x", "y"]


def test_what_takes_too_long_is_given_up() -> None:
    made = Made(threads=1, timeout=0.05)
    made.executor.put("a", "endless", forever)
    made.executor.put("a", "next", nothing)
    assert [made.next(), made.next()] == ["cancelled endless", "next"]


@pytest.fixture(params=[False, True], ids=["", "traced"])
def traced(request: pytest.FixtureRequest) -> Iterator[None]:
    """All threads, as under a debugger: CPython 3.11 then waits for the cancelled one."""
    if not request.param:
        yield
        return
    own, others = sys.gettrace(), threading.gettrace()
    threading.settrace(own or _trace)
    sys.settrace(own or _trace)
    try:
        yield
    finally:
        sys.settrace(own)
        threading.settrace(others)


def _trace(frame: object, event: str, argument: object) -> None:
    pass


@pytest.mark.usefixtures("traced")
def test_a_cancel_leaves_nothing_behind() -> None:
    made = Made(threads=1, timeout=0.05)
    made.executor.put("a", "endless", forever)
    made.executor.put("a", "next", nothing)
    assert [made.next(), made.next()] == ["cancelled endless", "next"]


def test_what_cannot_be_cancelled_is_left_alone() -> None:
    made, go = Made(timeout=0.01), threading.Event()

    def closed(task: Task) -> None:
        made.executor.cancel("closed")
        assert go.wait(TIMEOUT)

    made.executor.put("a", "closed", closed)
    made.executor.put("b", "beside", nothing)
    assert made.next() == "beside"
    go.set()
    assert made.next() == "closed"


@pytest.mark.usefixtures("traced")
def test_a_cancel_at_any_moment_hits_its_own_task_only() -> None:
    """Each task ends once, by itself or cancelled; those that nobody cancels never are."""
    made = Made(threads=2)

    def short(task: Task) -> None:
        task.cancellable = True
        sum(range(300))

    names = [f"{kind}{n}" for n in range(1500) for kind in ("aim", "safe")]
    for n, name in enumerate(names):
        made.executor.put(n % 2, name, short)
        made.executor.cancel(f"aim{n // 4}")
        made.executor.cancel(name.replace("safe", "aim"))
    ended = [made.next() for _ in names]
    assert sorted(name.removeprefix("cancelled ") for name in ended) == sorted(names)
    assert not [name for name in ended if name.startswith("cancelled safe")]
