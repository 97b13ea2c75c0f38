"""Worker processes that outlive a test: a start takes seconds, most of them one import.

A backend gets a worker that another has used and left empty. Everything goes through the
process border as it does for users; only starts and ends are left out, and these have tests
of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mlx_guarded_llm.engine.protocol import (
    Cancel,
    Command,
    Ended,
    EngineOptions,
    JobEnded,
    Load,
    Prepared,
    Preparing,
    Ready,
    Report,
    Run,
    Stopped,
    Unload,
)
from mlx_guarded_llm.worker.parent.client import WorkerEngine
from mlx_guarded_llm.worker.parent.death import Died

KEPT = 2  # workers of different options that wait at once
_idle: list[_Worker] = []
_lock = threading.Lock()


class _Worker:
    """One worker process, and who has it."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.ready: Ready | None = None
        self.gone = False
        self.lease: Lease | None = None
        self.engine = WorkerEngine(self._pass_on, options)

    def _pass_on(self, report: Report | Died) -> None:
        if isinstance(report, Ready):
            self.ready = report
        if isinstance(report, (Died, Stopped)):
            self.gone = True
        if self.lease is not None:
            self.lease.take(report)


class Lease:
    """A worker for one backend; see `backend.supervisor.Host`."""

    def __init__(self, worker: _Worker, report: Callable[[Report | Died], None]) -> None:
        self.worker = worker
        self._report = report
        self._mutex = threading.RLock()
        self._closing = self._over = False
        self._models: set[str] = set()
        self._open: set[str] = set()  # requests and jobs that have not ended
        worker.lease = self
        if worker.ready is not None:
            report(worker.ready)

    def send(self, command: Command) -> None:
        with self._mutex:
            if self._closing:
                return
            if isinstance(command, Preparing):
                self._open.add(command.request_id)
            elif isinstance(command, (Load, Unload, Run)):
                self._open.add(command.job_id)
                if isinstance(command, Load):
                    self._models.add(command.model)
        self.worker.engine.send(command)

    def close(self) -> None:
        """Have the worker forget everything, then say that it has stopped."""
        with self._mutex:
            self._closing = True
            for name in self._open:
                self.worker.engine.send(Cancel(name))
            for model in self._models:
                job = f"empty {model}"
                self._open.add(job)
                self.worker.engine.send(Unload(job, model, paused=True))
            self._end_if_empty()

    def take(self, report: Report | Died) -> None:
        with self._mutex:
            if isinstance(report, Ended):
                self._open.discard(report.request_id)
            elif isinstance(report, JobEnded):
                self._open.discard(report.job_id)
            elif isinstance(report, Prepared) and self._closing:
                self.worker.engine.send(Cancel(report.request_id))
            if not self._closing:
                self._report(report)
            elif self.worker.gone:
                self._open.clear()
            if self._closing:
                self._end_if_empty()

    def _end_if_empty(self) -> None:
        if self._open or self._over:
            return
        self._over = True
        self.worker.lease = None
        with _lock:
            if not self.worker.gone:
                _idle.append(self.worker)
            dropped = [_idle.pop(0) for _ in range(len(_idle) - KEPT)]
        for worker in dropped:
            worker.engine.close()
        self._report(Stopped())


class Pool:
    """Where a backend gets its workers; see `backend.supervisor.Hosts`."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options

    def start(self, report: Callable[[Report | Died], None]) -> Lease:
        with _lock:
            fit = [w for w in _idle if w.options == self._options and not w.gone]
            worker = fit[-1] if fit else None
            if worker is not None:
                _idle.remove(worker)
        return Lease(worker or _Worker(self._options), report)

    def details(self, host: Any) -> dict[str, Any]:
        return {"pid": host.worker.engine.pid, **host.worker.engine.timings}

    def stalled(self, host: Any) -> float:
        return float(host.worker.engine.stalled)

    def close(self) -> None:
        """The workers are the pool's."""


def pooled(isolation: str, options: EngineOptions, **_: Any) -> Pool:
    """In place of `backend.supervisor.launcher` when that is "process"."""
    assert isolation == "process"
    return Pool(options)
