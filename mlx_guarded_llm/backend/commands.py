"""From what the guard says to what the engine is told."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine import protocol
from ..guard import Exclusive, Load, Unload
from ..models import ModelFiles
from .work import Job


def exclusive(
    action: Exclusive, files: Mapping[str, ModelFiles], jobs: Mapping[str, Job]
) -> protocol.Command:
    """The engine's command for a job that begins.

    Args:
        files: of the models that are known.
        jobs: that somebody waits for.
    """
    paused = bool(action.paused)
    if isinstance(action, Load):
        model = action.model
        return protocol.Load(action.job_id, model, files[model], action.evict, paused)
    if isinstance(action, Unload):
        return protocol.Unload(action.job_id, action.model, paused)
    job = jobs.get(action.job_id)
    fn = job.fn if job is not None and job.fn is not None else _nothing
    return protocol.Run(action.job_id, job.key if job else "", fn, paused)


def _nothing() -> None:
    """The caller of a foreign function went away before it began."""
