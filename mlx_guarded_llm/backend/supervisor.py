"""The engine of a backend: started on first use, and started again when it has died."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..engine.protocol import Broken, Command, EngineOptions, Ready, Report
from ..errors import EngineDied, GuardedLLMError
from ..worker.parent.death import Death, Died
from ..worker.parent.stderr_excerpt import stderr_excerpt

if TYPE_CHECKING:
    from ..worker.parent.process import WorkerProcess

Isolation = Literal["process", "thread"]

FIRST_WAIT = 0.25  # seconds, doubled by each further death
LONGEST_WAIT = 30.0
CAP = 10  # deaths in a row
APART = 600.0  # seconds after which two deaths are no longer in a row


class Supervisor:
    """One engine at a time. Used by the dispatcher's thread only, but for `pid`.

    Args:
        launcher: starts engines.
        report: takes what the engine says.

    Attributes:
        ready: what the engine said when it began to work; None while there is none.
        engine: the engine, from its start to its death.
        progressed: this engine has produced a token, or loaded a model.
    """

    def __init__(self, launcher: Launcher, report: Callable[[Report | Died], None]) -> None:
        self.ready: Ready | None = None
        self.progressed = False
        self._launcher = launcher
        self._report = report
        self.engine: EngineClient | None = None
        self._restarts = Restarts()
        self._due: float | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the engine, if it has a process of its own. From any thread."""
        pid: int | None = self.details.get("pid")
        return pid

    @property
    def details(self) -> dict[str, Any]:
        """See `Launcher.details`."""
        engine = self.engine
        return self._launcher.details(engine) if engine is not None else {}

    @property
    def state(self) -> Literal["idle", "starting", "working"]:
        """Whether there is an engine, and whether it works."""
        if self.ready is not None:
            return "working"
        return "idle" if self.engine is None and self._due is None else "starting"

    @property
    def stalled(self) -> float:
        """Seconds for which the engine has made no progress; 0.0 where nobody watches it."""
        return self._launcher.stalled(self.engine) if self.engine is not None else 0.0

    def works(self) -> bool:
        """Whether an engine works. If there is none, one is started."""
        if self.ready is None and self.engine is None and self._due is None:
            self._start()
        return self.ready is not None

    def send(self, command: Command) -> None:
        """Send a command to the engine, if there is one."""
        if self.engine is not None:
            self.engine.send(command)

    def died(self, now: float, death: Death) -> EngineDied | None:
        """The engine is gone.

        Returns:
            None if another one starts soon; otherwise why it does not. Then each new request
            starts one.
        """
        wait = self._restarts.died(now, self.progressed)
        self.ready, self.engine, self.progressed = None, None, False
        self._due = None if wait is None else now + wait
        return _gave_up(death) if wait is None else None

    def deadline(self) -> float | None:
        """When `tick` is due."""
        return self._due

    def tick(self, now: float) -> None:
        """Start another engine when it is time."""
        if self._due is not None and self._due <= now:
            self._due = None
            self._start()

    def close(self) -> bool:
        """Stop the engine. Returns whether there is one, which will say `Stopped`."""
        self._due = None
        self._launcher.close()
        if self.engine is not None:
            self.engine.close()
        return self.engine is not None

    def _start(self) -> None:
        try:
            self.engine = self._launcher.start(self._report)
        except GuardedLLMError as error:
            self._report(Broken(error.with_traceback(None)))
        except Exception as error:  # the system lacks something at the moment
            text = f"the engine cannot be started now ({type(error).__name__}: {error})"
            self._report(Died(Death(cause="not_started", text=text, pid=0)))


class Restarts:
    """Counts deaths in a row: with no token and no load between them.

    After the first, the next engine starts at once: most die of something that does not recur.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._last = float("-inf")

    def died(self, now: float, progressed: bool) -> float | None:
        """An engine has died.

        Args:
            now: seconds of a monotonic clock.
            progressed: it had produced a token or loaded a model since its start.

        Returns:
            Seconds to wait before the next start; None at the cap, when only a new request
            starts another one.
        """
        if progressed or now - self._last > APART:
            self._in_a_row = 0
        self._last = now
        self._in_a_row += 1
        if self._in_a_row == 1:
            return 0.0
        if self._in_a_row >= CAP:
            return None
        return min(FIRST_WAIT * 2.0 ** (self._in_a_row - 2), LONGEST_WAIT)


def _gave_up(death: Death) -> EngineDied:
    text = f"the engine died again and again, the last time like this: {death.text.rstrip('.')}."
    excerpt = stderr_excerpt(death.stderr)
    if excerpt:
        text += f" The end of its stderr: {excerpt}"
    return EngineDied(text, hint="`mlx-guarded doctor` may tell more; then ask again.")


class EngineClient(Protocol):
    """An engine, in this process or in another."""

    def send(self, command: Command) -> None:
        """Carry out a command soon. Never blocks."""

    def close(self) -> None:
        """Stop everything and give all memory back, soon. Answer: `Stopped`."""


class Launcher(Protocol):
    """Where engines come from."""

    def start(self, report: Callable[[Report | Died], None]) -> EngineClient:
        """Start one. Its reports go to `report`, from whatever thread."""

    def details(self, engine: EngineClient) -> dict[str, Any]:
        """For the record: its "pid" if it has a process of its own, and what starting took."""

    def stalled(self, engine: EngineClient) -> float:
        """Seconds for which an engine has made no progress."""

    def close(self) -> None:
        """No more are wanted."""


def launcher(
    isolation: Isolation, options: EngineOptions, *, stall_timeout: float, spare: bool
) -> Launcher:
    """What starts the engines of a backend."""
    if isolation == "thread":
        return ThreadLauncher(options)
    return ProcessLauncher(options, stall_timeout, spare=spare)


class ThreadLauncher:
    """Engines on the MLX thread of this process; see `Launcher`."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options

    def start(self, report: Callable[[Report | Died], None]) -> EngineClient:
        """See `Launcher.start`."""
        from ..engine.engine import (
            Engine,
        )  # late: it is not needed where the engine has a process of its own

        return Engine(report, self._options)

    def details(self, engine: EngineClient) -> dict[str, Any]:
        """See `Launcher.details`."""
        return {}

    def stalled(self, engine: EngineClient) -> float:
        """See `Launcher.stalled`."""
        return 0.0

    def close(self) -> None:
        """See `Launcher.close`."""


class ProcessLauncher:
    """Engines in child processes; see `Launcher`.

    Args:
        options: of the engines.
        stall_timeout: seconds without progress after which one counts as hung.
        spare: have the next process start and import MLX while this one works.
    """

    def __init__(self, options: EngineOptions, stall_timeout: float, *, spare: bool) -> None:
        self._options = options
        self._stall_timeout = stall_timeout
        self._wants_spare = spare
        self._spare: WorkerProcess | None = None

    def start(self, report: Callable[[Report | Died], None]) -> EngineClient:
        """See `Launcher.start`."""
        from ..worker.parent.client import WorkerEngine
        from ..worker.parent.process import WorkerProcess

        process, self._spare = self._spare, None
        engine = WorkerEngine(
            report, self._options, stall_timeout=self._stall_timeout, process=process
        )
        if self._wants_spare:
            self._spare = WorkerProcess()
        return engine

    def details(self, engine: EngineClient) -> dict[str, Any]:
        """See `Launcher.details`."""
        worker: Any = engine
        return {"pid": worker.pid, **worker.timings}

    def stalled(self, engine: EngineClient) -> float:
        """See `Launcher.stalled`."""
        worker: Any = engine
        return float(worker.stalled)

    def close(self) -> None:
        """See `Launcher.close`."""
        if self._spare is not None:
            self._spare.stop()
            self._spare = None
