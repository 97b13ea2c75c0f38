"""The errors the guard ends things with, and how they read in the record."""

from __future__ import annotations

from ..errors import EngineDied, GuardedLLMError, LoadDeferredTimeout, QueueFull, RequestTimeout
from .state import JobState, Pairs, RequestState


def describe(error: GuardedLLMError) -> str:
    """An error in one line, for the record."""
    return f"{type(error).__name__}: {error}"


def queue_full(waiting: int, what: str) -> QueueFull:
    """There are `waiting` requests or jobs, and no more are taken."""
    return QueueFull(
        f"{waiting} {what} are waiting already.", hint="Try again later, or raise max_queue."
    )


def timed_out(request: RequestState, now: float) -> RequestTimeout:
    """The request's own deadline has passed."""
    doing = "waiting to start" if request.started_at is None else "generating"
    if request.interrupted_at is not None:
        doing = "waiting to go on after a crash"
    return RequestTimeout(
        f"request {request.id} to {request.model} timed out after "
        f"{now - request.asked_at:.1f} s, {doing}.",
        hint=f"backend.explain({request.id!r}) tells what it waited for.",
    )


def cut_off(job: JobState, cause: str) -> EngineDied:
    """The engine died while it did this job."""
    hint = "It may have run in part, so it is not run again by itself." if job.kind == "run" else ""
    return EngineDied(f"the {job.kind} of {job.model} was cut off: {cause.rstrip('.')}.", hint=hint)


def deferred_too_long(job: JobState, now: float, held_by: Pairs) -> LoadDeferredTimeout:
    """The generations in `held_by` went on until the job's deadline."""
    waited = now - job.asked_at
    names = ", ".join(f"{request} on {model}" for request, model in held_by)
    return LoadDeferredTimeout(
        f"the {job.kind} of {job.model} waited {waited:.1f} s for {names}.",
        model=job.model,
        waited=waited,
        held_by=held_by,
        hint="Raise load_wait, or use on_load_deadline='pause'.",
    )
