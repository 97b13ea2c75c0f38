"""The errors that the guard raises or fails work with, and their wording in the record."""

from __future__ import annotations

from ..errors import (
    EngineDied,
    GuardedLLMError,
    LoadDeferredTimeout,
    MemoryRefused,
    QueueFull,
    RequestTimeout,
)
from .state import JobState, Pairs, RequestState, Status


def describe(error: GuardedLLMError) -> str:
    """An error in one line, for the record."""
    return f"{type(error).__name__}: {error}"


def facts(error: GuardedLLMError | None) -> dict[str, object]:
    """What the record has of an error besides its text."""
    held_by = error.held_by if isinstance(error, MemoryRefused) else ()
    return {"held_by": [holder._asdict() for holder in held_by]} if held_by else {}


def queue_full(waiting: int, what: str) -> QueueFull:
    """`waiting` requests or jobs are waiting, and no more are accepted."""
    return QueueFull(
        f"{waiting} {what} are waiting already.", hint="Try again later, or raise max_queue."
    )


def timed_out(request: RequestState, now: float, *, lost: bool) -> RequestTimeout:
    """The request's own deadline has passed.

    Args:
        lost: there is no engine now.
    """
    status, doing = request.status, request.status.value
    if status is Status.PREPARING and lost:
        doing = "waiting for MLX to start"
    hint = f"backend.explain({request.id!r}) tells what it waited for."
    if status.early:
        hint = "Pull the model first, or raise timeout."
    return RequestTimeout(
        f"request {request.id} to {request.model} timed out after "
        f"{now - request.submitted_at:.1f} s, {doing}.",
        hint=hint,
    )


def cut_off(job: JobState, cause: str) -> EngineDied:
    """The engine died while this job ran."""
    hint = "It may have run in part, so it is not run again by itself." if job.kind == "run" else ""
    return EngineDied(f"the {job.kind} of {job.model} was cut off: {cause.rstrip('.')}.", hint=hint)


def deferred_too_long(job: JobState, now: float, held_by: Pairs) -> LoadDeferredTimeout:
    """The generations in `held_by` ran until the job's deadline."""
    waited = now - job.asked_at
    names = ", ".join(f"{request} on {model}" for request, model in held_by)
    return LoadDeferredTimeout(
        f"the {job.kind} of {job.model} waited {waited:.1f} s for {names}.",
        model=job.model,
        waited=waited,
        held_by=held_by,
        hint="Raise load_wait, or use on_load_deadline='pause'.",
    )
