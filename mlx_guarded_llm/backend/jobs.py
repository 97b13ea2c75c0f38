"""Loads, unloads and foreign work: from whoever asks to the guard, and back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..engine.protocol import JobEnded, ReadTokenizer
from ..errors import GuardedLLMError
from ..models import ModelFiles
from .library import Found
from .work import Job

if TYPE_CHECKING:
    from .dispatcher import Dispatcher


class Jobs:
    """The dispatcher's part for jobs. Used by its thread only."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def ask(self, job: Job) -> None:
        """A load, an unload or foreign work, asked for by name."""
        to = self._dispatcher
        if to.refuses is not None:
            job.fail(to.refuses)
            return
        if job.kind == "load":
            assert job.spec is not None
            key = job.key = to.library.key(job.spec)
            refusal = to.recovery.refusal(key)
            if refusal is not None:
                job.fail(refusal)
                return
            to.callers.jobs[job.id] = job
            to.with_files(key, job.spec, lambda found: self._load_fetched(job, found))
        else:
            to.callers.jobs[job.id] = job
            if job.spec is not None:
                job.key = to.library.key(job.spec)
            to.when_ready(lambda: self._ask_guard(job))

    def _load_fetched(self, job: Job, found: Found) -> None:
        to = self._dispatcher
        if isinstance(found, GuardedLLMError):
            to.callers.jobs.pop(job.id, None)
            job.fail(found)
        else:
            to.when_ready(lambda: self._ask_load(job, found))

    def _ask_load(self, job: Job, files: ModelFiles) -> None:
        to = self._dispatcher
        try:
            to.know(job.key, files)
        except GuardedLLMError as error:
            to.callers.jobs.pop(job.id, None)
            job.fail(error)
            return
        to.machine.send(ReadTokenizer(job.key, files))
        self._ask_guard(job)

    def _ask_guard(self, job: Job) -> None:
        to = self._dispatcher
        if job.id not in to.callers.jobs:
            return
        assert to.guard is not None
        now = time.monotonic()
        if job.kind == "load":
            to.do(to.guard.ask_load(now, job.id, job.key, pin=job.pin))
        elif job.kind == "unload":
            to.do(to.guard.ask_unload(now, job.id, job.key))
        else:
            to.do(to.guard.ask_run(now, job.id, job.key))

    def cancel(self, job_id: str) -> None:
        """Whoever waited for a job no longer does."""
        to = self._dispatcher
        if to.callers.jobs.pop(job_id, None) is not None and to.guard is not None:
            to.do(to.guard.cancel_job(time.monotonic(), job_id))

    def ended(self, report: JobEnded) -> None:
        to = self._dispatcher
        to.callers.loaded()
        if to.guard is None:
            return  # it came after the end
        job = to.callers.jobs.get(report.job_id)
        again = to.recovery.load_again(report)
        if job is not None and not again:
            job.value = report.value
            job.error = report.error
        error = report.error
        if error is None:
            to.machine.progressed = True
        elif not isinstance(error, GuardedLLMError):
            error = GuardedLLMError(f"{type(error).__name__}: {error}")
        to.do(
            to.guard.job_ended(
                time.monotonic(),
                report.job_id,
                error=error,
                left=report.left,
                again=again,
                **report.details,
            )
        )
