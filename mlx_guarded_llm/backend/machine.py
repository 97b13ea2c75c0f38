"""The engine of a backend: started on first use, and started again when it has died."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..engine.protocol import Broken, Command, Ready, Report
from ..errors import GuardedLLMError
from ..worker.death import Died
from .restarts import Restarts


class Host(Protocol):
    """An engine, in this process or in another."""

    def send(self, command: Command) -> None:
        """Carry out a command soon. Never blocks."""

    def close(self) -> None:
        """Stop everything and give all memory back, soon. Answer: `Stopped`."""


class Hosts(Protocol):
    """Where engines come from."""

    def start(self, report: Callable[[Report | Died], None]) -> Host:
        """Start one. Its reports go to `report`, from whatever thread."""

    def details(self, host: Host) -> dict[str, Any]:
        """For the record: its "pid" if it has a process of its own, and what starting took."""

    def close(self) -> None:
        """No more are wanted."""


class Machine:
    """One engine at a time. Used by the dispatcher's thread only, but for `pid`.

    Args:
        hosts: starts engines.
        report: takes what the engine says.

    Attributes:
        ready: what the engine said when it began to work; None while there is none.
        host: the engine, from its start to its death.
        progressed: this engine has passed on a token, or loaded a model.
    """

    def __init__(self, hosts: Hosts, report: Callable[[Report | Died], None]) -> None:
        self.ready: Ready | None = None
        self.progressed = False
        self._hosts = hosts
        self._report = report
        self.host: Host | None = None
        self._restarts = Restarts()
        self._due: float | None = None
        self._waiting: list[Callable[[], None]] = []

    @property
    def pid(self) -> int | None:
        """Process id of the engine, if it has a process of its own. From any thread."""
        pid: int | None = self.details.get("pid")
        return pid

    @property
    def details(self) -> dict[str, Any]:
        """See `Hosts.details`."""
        host = self.host
        return self._hosts.details(host) if host is not None else {}

    def when_ready(self, call: Callable[[], None]) -> None:
        """Run `call` once the engine works; the first call starts it."""
        if self.ready is not None:
            call()
            return
        self._waiting.append(call)
        if self.host is None and self._due is None:
            self._start()

    def send(self, command: Command) -> None:
        """Tell the engine. One that is gone needs to be told nothing."""
        if self.host is not None:
            self.host.send(command)

    def works(self, ready: Ready) -> list[Callable[[], None]]:
        """It is ready. Returns the calls that waited for it."""
        self.ready = ready
        waiting, self._waiting = self._waiting, []
        return waiting

    def died(self, now: float) -> float | None:
        """It is gone. Returns in how many seconds another starts; None for not by itself."""
        wait = self._restarts.died(now, self.progressed)
        self.ready, self.host, self.progressed = None, None, False
        self._due = None if wait is None else now + wait
        return wait

    def deadline(self) -> float | None:
        """When `tick` is due."""
        return self._due

    def tick(self, now: float) -> None:
        """Start another engine when it is time."""
        if self._due is not None and self._due <= now:
            self._due = None
            self._start()

    def give_up(self) -> None:
        """Whoever waits for the engine has been told otherwise."""
        self._waiting.clear()

    def close(self) -> bool:
        """Stop the engine. Returns whether there is one, which will say `Stopped`."""
        self.give_up()
        self._due = None
        self._hosts.close()
        if self.host is not None:
            self.host.close()
        return self.host is not None

    def _start(self) -> None:
        try:
            self.host = self._hosts.start(self._report)
        except GuardedLLMError as error:
            self._report(Broken(error.with_traceback(None)))
