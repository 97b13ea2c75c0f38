"""Where the engine of a backend runs: on a thread of this process, or in a child."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ..engine.protocol import EngineOptions, Report
from ..worker.death import Died
from .machine import Host, Hosts

if TYPE_CHECKING:
    from ..worker.process import WorkerProcess

Isolation = Literal["process", "thread"]


def hosts(
    isolation: Isolation, options: EngineOptions, *, stall_timeout: float, spare: bool
) -> Hosts:
    """What starts the engines of a backend."""
    if isolation == "thread":
        return Threads(options)
    return Processes(options, stall_timeout, spare=spare)


class Threads:
    """Engines on the MLX thread of this process; see `machine.Hosts`."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options

    def start(self, report: Callable[[Report | Died], None]) -> Host:
        """See `Hosts.start`."""
        from ..engine.engine import Engine  # late: a parent of workers has no use for it

        return Engine(report, self._options)

    def details(self, host: Host) -> dict[str, Any]:
        """See `Hosts.details`."""
        return {}

    def close(self) -> None:
        """See `Hosts.close`."""


class Processes:
    """Engines in child processes; see `machine.Hosts`.

    Args:
        options: of the engines.
        stall_timeout: seconds without progress until one is taken for hung.
        spare: have the next process start and import MLX while this one works.
    """

    def __init__(self, options: EngineOptions, stall_timeout: float, *, spare: bool) -> None:
        self._options = options
        self._stall_timeout = stall_timeout
        self._wants_spare = spare
        self._spare: WorkerProcess | None = None

    def start(self, report: Callable[[Report | Died], None]) -> Host:
        """See `Hosts.start`."""
        from ..worker.host import WorkerEngine
        from ..worker.process import WorkerProcess

        process, self._spare = self._spare, None
        host = WorkerEngine(
            report, self._options, stall_timeout=self._stall_timeout, process=process
        )
        if self._wants_spare:
            self._spare = WorkerProcess()
        return host

    def details(self, host: Host) -> dict[str, Any]:
        """See `Hosts.details`."""
        worker: Any = host
        return {"pid": worker.pid, **worker.timings}

    def close(self) -> None:
        """See `Hosts.close`."""
        if self._spare is not None:
            self._spare.stop()
            self._spare = None
