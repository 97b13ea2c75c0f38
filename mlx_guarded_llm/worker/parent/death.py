"""How a worker died, and why."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from typing import Literal

from ...engine.observer import Work
from ..status_page import Preparation, WorkerStatus
from .stderr_excerpt import stderr_excerpt

Cause = Literal[
    "abort",
    "segfault",
    "killed",
    "out_of_memory",
    "condemned",
    "hung",
    "exit",
    "not_started",
    "rank_lost",
]


@dataclass(frozen=True, kw_only=True)
class Death:
    """The end of a worker that nobody asked to stop.

    Attributes:
        cause: "abort" (SIGABRT), "segfault" (SIGSEGV, SIGBUS, SIGILL, SIGFPE,
            SIGTRAP, SIGSYS), "killed" (SIGKILL or another signal from outside),
            "out_of_memory" (killed by the kernel for memory, or ended by itself and its
            stderr mentions memory), "condemned" (MLX's results cannot be trusted any more),
            "hung" (no progress; we ended it), "exit" (it left by itself), "rank_lost" (a process
            on another machine that had a part of the model is gone), or "not_started" (it never
            got as far as MLX).
        text: the cause in one sentence, with the process id and what the worker was doing.
        pid: of the worker.
        code: exit status as `subprocess` gives it; a signal is negative.
        work: what its MLX thread was doing, "" for nothing.
        model: the model it did it with (the label of a run), or "".
        stderr: the last of what it wrote there.
        lived: seconds since it was started.
        preparing: the requests it was preparing, by their names in the engine; the one
            that it hung in alone, if it did.
    """

    cause: Cause
    text: str
    pid: int
    code: int | None = None
    work: Work = ""
    model: str = ""
    stderr: str = ""
    lived: float = 0.0
    preparing: tuple[str, ...] = ()

    @property
    def brief(self) -> str:
        """The death alone, such as "SIGABRT while generating"."""
        how = {
            "out_of_memory": "out of memory",
            "condemned": "an MLX error that spoils all later results",
            "hung": "no progress",
            "not_started": "it did not start",
            "rank_lost": "another rank was lost",
        }.get(self.cause) or _status(self.code)
        return f"{how} while {_DOING[self.work].split()[0]}" if self.work else how


@dataclass(frozen=True)
class Died:
    """The process of the engine is gone; every request and job it had is lost.

    Reported in place of a `protocol.Report`, which only an engine sends.
    """

    death: Death


_DOING: dict[Work, str] = {
    "": "idle",
    "load": "loading",
    "unload": "unloading",
    "run": "running",
    "step": "generating with",
    "prepare": "preparing a request for",
}
_FAULTS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGTRAP,
    signal.SIGSYS,
}
_NO_MEMORY = (
    "bad_alloc",
    "out of memory",
    "outofmemory",
    "unable to allocate",
    "cannot allocate memory",
    "insufficient memory",
    "memoryerror",
)


def doing(work: Work, model: str) -> str:
    """A piece of work in words, to follow "it was": "loading phi3", "idle"."""
    return f"{_DOING[work]} {model}" if work and model else _DOING[work].split()[0]


def read_death(
    *,
    pid: int,
    code: int | None,
    status: WorkerStatus | None,
    stderr: str,
    lived: float,
    condemned: str = "",
    rank_lost: bool = False,
    hung: str = "",
    oom_kills: int = 0,
    started: bool,
    stuck: Preparation | None = None,
) -> Death:
    """Find out why a worker died, from what it left behind.

    Args:
        pid: of the worker.
        code: exit status as `subprocess` gives it; None if nobody could tell.
        status: what it last showed of itself; None if it never did.
        stderr: the last of what it wrote there.
        lived: seconds since it was started.
        condemned: the error after which we ended it, or "".
        rank_lost: that error says that another rank is gone.
        hung: what `Watchdog.look` said before we ended it, or "".
        oom_kills: how many more kills for memory the kernel counts than when it started.
        started: it got as far as MLX.
        stuck: see `Watchdog.stuck`.
    """
    preparing = (stuck,) if stuck is not None else status.preparing if status is not None else ()
    if (
        status is not None
        and preparing
        and (stuck is not None or (not status.work and len(preparing) == 1))
    ):
        status = replace(status, work="prepare", model=preparing[0].model)
    meanwhile = f" while it was {doing(status.work, status.model)}" if status and started else ""
    how = _ending(code) + meanwhile
    cause: Cause
    if hung:
        cause, how = "hung", f"stood still and was ended: {hung}"
    elif rank_lost:
        cause, how = "rank_lost", f"was ended{meanwhile}: {condemned}"
    elif condemned:
        cause, how = "condemned", f"was ended{meanwhile}, after an error of MLX: {condemned}"
    elif code == -signal.SIGKILL and oom_kills > 0:
        cause, how = "out_of_memory", f"was killed by the kernel for memory{meanwhile}"
    elif code is None:
        cause = "exit"
    elif code >= 0 or code == -signal.SIGABRT:
        cause = "exit" if code >= 0 else "abort"
        if _tells_of_memory(stderr):
            cause, how = "out_of_memory", f"ran out of memory and {how}"
    else:
        cause = "segfault" if -code in _FAULTS else "killed"
    if not started:
        cause, how = "not_started", f"did not start: it {how}"
    return Death(
        cause=cause,
        text=f"the worker (pid {pid}) {how}",
        pid=pid,
        code=code,
        work=status.work if status is not None else "",
        model=status.model if status is not None else "",
        stderr=stderr,
        lived=lived,
        preparing=tuple(request.request_id for request in preparing),
    )


def _ending(code: int | None) -> str:
    if code is None:
        return "is gone"
    if code >= 0:
        return f"left with {_status(code)}"
    by_itself = -code == signal.SIGABRT or -code in _FAULTS
    return f"{'died of' if by_itself else 'was killed by'} {_status(code)}"


def _status(code: int | None) -> str:
    """An exit status in words: "SIGABRT", "status 3"."""
    if code is None:
        return "an unknown end"
    if code >= 0:
        return f"status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"


def _tells_of_memory(stderr: str) -> bool:
    # Only the last lines: a failure long ago, which it survived, did not end it.
    words = stderr_excerpt(stderr, limit=2000).lower()
    return any(word in words for word in _NO_MEMORY)
