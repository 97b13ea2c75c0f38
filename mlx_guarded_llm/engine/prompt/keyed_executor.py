"""A few threads that run tasks: those of one key in order, those of several side by side."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from ...logs import get_logger

logger = get_logger("engine")

T = TypeVar("T")

_INTERVAL = 0.5  # seconds between two checks for tasks that take too long
_STEPS = 100  # of Python; a pending asynchronous exception is raised within one
_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc


class TaskCancelled(BaseException):
    """Raised inside a task that nobody wants any more, or that takes too long."""


class Task:
    """One piece of work while it runs. Made on the thread that runs it.

    Attributes:
        began: `time.monotonic()` seconds.
        cancellable: the task sets this once it may be cancelled. It must not be in the
            middle of an import, for example.
        timed_out: it was cancelled because it took too long.
    """

    def __init__(self) -> None:
        self.name = ""
        self.thread = threading.get_ident()
        self.began = time.monotonic()
        self.cancellable = False
        self.timed_out = False
        self.cancelled = False
        self.over = False


class KeyedExecutor(Generic[T]):
    """The threads. Everything but `_run` and what it calls may be used from any thread.

    No Python function is called while the lock is held. Until a cancelled thread has taken its
    exception, CPython 3.11 stops every traced thread (under a debugger, or coverage) at the
    next function it enters. If that thread held the lock, the cancelled one could never go on.

    Args:
        do: does one piece of work, as the task it is given; it may raise `TaskCancelled`.
        threads: the most there may be; they are started when they are needed.
        timeout: seconds after which a cancellable task is cancelled.
    """

    def __init__(self, do: Callable[[T, int, Task], None], threads: int, timeout: float) -> None:
        self._do = do
        self._most = threads
        self._timeout = timeout
        self._lock = threading.Lock()  # of all that follows
        self._waiting: dict[Hashable, deque[tuple[str, T]]] = {}
        self._tasks: dict[int, Task] = {}  # by the number of their thread
        self._busy: set[Hashable] = set()  # keys that a thread works on, or is about to
        self._threads = 0
        self._watched = False
        self._ready: queue.SimpleQueue[Hashable] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        """Work is waiting or running."""
        return bool(self._busy)

    def put(self, key: Hashable, name: str, work: T) -> None:
        """Run a piece of work soon, after everything else of its key."""
        with self._lock:
            self._waiting.setdefault(key, deque()).append((name, work))
            if key in self._busy:
                return
            self._busy.add(key)
            wanted = min(len(self._busy), self._most) > self._threads
        if wanted:
            self._start()
        self._ready.put(key)

    def cancel(self, name: str) -> None:
        """Cancel the task of this name, if it is running and can be cancelled."""
        with self._lock:
            tasks = list(self._tasks.values())
        for task in tasks:
            if task.name == name:
                self._cancel(task)

    def close(self) -> None:
        """The threads end when nothing is left to do."""
        self._ready.put(None)

    # ---- the threads -------------------------------------------------------------

    def _start(self) -> None:
        with self._lock:
            number = self._threads
            if number >= self._most:
                return
            self._threads += 1
        try:
            threading.Thread(
                target=self._run, args=(number,), name=f"mlx-guarded-prepare-{number}", daemon=True
            ).start()
        except RuntimeError:  # the system has none left
            with self._lock:
                self._threads -= 1
            if not number:
                raise
            logger.warning("requests are prepared by %d threads only", number)

    def _run(self, number: int) -> None:
        while (key := self._ready.get()) is not None:
            task = Task()
            with self._lock:
                task.name, work = self._waiting[key].popleft()
                self._tasks[number] = task
            self._watch()
            try:
                try:
                    self._do(work, number, task)
                finally:
                    self.end_task(task)
            except TaskCancelled:  # a task is cancelled once, so no other exception is pending
                self.end_task(task)
            except BaseException:
                logger.exception("%s failed", task.name)
            with self._lock:
                del self._tasks[number]
                if self._waiting[key]:
                    self._ready.put(key)
                else:
                    del self._waiting[key]
                    self._busy.discard(key)
        self._ready.put(None)  # for the next thread

    def end_task(self, task: Task) -> None:
        """From here on the task cannot be cancelled. Call it on the task's own thread."""
        with self._lock:
            task.over = True
        if not task.cancelled:
            return
        # The exception may still be pending. It cannot be taken back (by None for the exception):
        # CPython 3.11 would look for it ever after. It is raised again instead. That leaves one
        # exception, and makes this thread look for it: where two threads are cancelled at once,
        # the first to take its exception makes CPython 3.11 forget the other's.
        try:
            _raise_in(ctypes.c_ulong(task.thread), ctypes.py_object(TaskCancelled))
            for _ in range(_STEPS):
                pass
        except TaskCancelled:
            pass

    # ---- cancelling --------------------------------------------------------------

    def _cancel(self, task: Task, *, timed_out: bool = False) -> None:
        with self._lock:
            if task.cancellable and not task.over and not task.cancelled:
                task.cancelled, task.timed_out = True, timed_out
                _raise_in(ctypes.c_ulong(task.thread), ctypes.py_object(TaskCancelled))

    def _watch(self) -> None:
        if self._watched:
            return
        self._watched = True
        try:
            threading.Thread(target=self._look, name="mlx-guarded-watch", daemon=True).start()
        except RuntimeError:
            self._watched = False

    def _look(self) -> None:
        """Cancel tasks that take too long, until none is left."""
        while True:
            time.sleep(min(_INTERVAL, self._timeout / 8))
            with self._lock:
                tasks = list(self._tasks.values())
                if not self._busy:
                    self._watched = False
                    return
            now = time.monotonic()
            for task in tasks:
                if now - task.began > self._timeout:
                    self._cancel(task, timed_out=True)
