"""What the tests of the worker have in common."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil

from mlx_guarded_llm.engine.protocol import (
    EngineOptions,
    JobEnded,
    Load,
    Ready,
    Report,
    Run,
    Stopped,
)
from mlx_guarded_llm.models import Catalog
from mlx_guarded_llm.models.spec import ModelFiles
from mlx_guarded_llm.worker.parent.client import WorkerEngine
from mlx_guarded_llm.worker.parent.death import Death, Died
from mlx_guarded_llm.worker.parent.process import WorkerProcess
from mlx_guarded_llm.worker.pickling import pack, unpack

PATIENCE = 60.0  # seconds; only a hang takes so long
OPTIONS = EngineOptions(memory_budget=1024**3)

R = TypeVar("R", bound=Report | Died)


class Host:
    """A `WorkerEngine` and everything it reported."""

    def __init__(self, process: WorkerProcess | None = None, stall_timeout: float = 60.0) -> None:
        self.reports: list[Report | Died] = []
        self._new: queue.SimpleQueue[Report | Died] = queue.SimpleQueue()
        self.engine = WorkerEngine(
            self._new.put, OPTIONS, stall_timeout=stall_timeout, process=process
        )
        self.pid = self.engine.pid

    def next(self, kind: type[R]) -> R:
        """The next report of this kind."""
        while True:
            report = self._new.get(timeout=PATIENCE)
            self.reports.append(report)
            if isinstance(report, kind):
                return report
            assert not isinstance(report, (Died, Stopped)), report

    def more(self) -> list[Report | Died]:
        """What was reported since, and is no more to come."""
        rest = []
        while not self._new.empty():
            rest.append(self._new.get())
        return rest

    def ready(self) -> Ready:
        return self.next(Ready)

    def death(self) -> Death:
        return self.next(Died).death

    def run(self, fn: Callable[[], Any], label: str = "theirs") -> None:
        """Have the worker call a function; `value` waits for it."""
        self.engine.send(Run("run", label, pack(fn), False))

    def value(self) -> Any:
        ended = self.next(JobEnded)
        if ended.error is not None:
            raise ended.error
        return unpack(ended.value)

    def load(self, folder: str) -> None:
        self.engine.send(Load("load", folder, files_of(folder), (), False))
        assert self.next(JobEnded).error is None

    def close(self) -> None:
        """Stop it, and see that it is gone."""
        self.engine.close()
        self.next(Stopped)
        assert is_gone(self.pid)


def files_of(folder: str) -> ModelFiles:
    catalog = Catalog()
    return catalog.ensure(catalog.resolve(folder), offline=True)


def is_gone(pid: int) -> bool:
    """No process has that id, a zombie neither."""
    return not psutil.pid_exists(pid)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
