"""The killer of the chaos: it waits for a moment, strikes, and sees that it was noticed."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from mlx_guarded_llm import Backend, Progress
from mlx_guarded_llm.errors import EngineDied
from tests.soak.faults import FAULTS, plant
from tests.soak.questions import deal

MOMENT_LIMIT = 15.0  # seconds to wait for a moment, before any other will do
DEATH_LIMIT = 60.0  # seconds until a death must be known, the watchdog's patience apart
SPAWN_LIMIT = 90.0
IMPORT = 2.5  # seconds that a worker takes to import MLX, about
IN_A_ROW = 3  # workers that may die before they did anything; the cap is further off

# How each must be read. Python's fault handler, which an abort calls, reads the stacks of
# threads that run, and now and then crashes at that.
CAUSES: Mapping[str, tuple[str, ...]] = {
    "SIGKILL": ("killed",),
    "SIGTERM": ("killed",),
    "SIGABRT": ("abort", "segfault"),
    "SIGSEGV": ("segfault",),
    "SIGSTOP": ("hung",),
    "os.abort": ("abort", "segfault"),
    "os._exit": ("exit",),
    "MLX error": ("condemned",),
    "standstill": ("hung",),
}
SIGNALS = tuple(kind for kind in CAUSES if kind.startswith("SIG"))
MOMENTS = ("load", "prefill", "decode", "between frames", "any", "unload") + 3 * ("planted",)
# Where and what; in a run an error only ends the function, and a standstill is its own affair.
PLANTS = [
    (site, fault)
    for site in ("step", "step", "load", "unload", "run")
    for fault in FAULTS
    if site != "run" or fault not in ("MLX error", "standstill")
]


T = TypeVar("T")


def soon(look: Callable[[], T | None], limit: float) -> T | None:
    """What `look` finds, as soon as it is something; None after that many seconds."""
    end = time.monotonic() + limit
    while not (found := look()):
        if time.monotonic() > end:
            return None
        time.sleep(0.002)
    return found


@dataclass(frozen=True)
class Died:
    """An "engine.died" of the record."""

    pid: int
    how: str
    work: str
    time: float


class Journal(logging.Handler):
    """Hears of everything: events by the log, progress and pieces of answers by calls.

    Attributes:
        deaths: by process id.
        started: process ids of the workers that worked.
        interrupted: ids of requests that were cut off.
        kinds: how many events of each kind there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.deaths: dict[int, Died] = {}
        self.started: set[int] = set()
        self.interrupted: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.died_twice: list[int] = []
        self._moments = {name: threading.Event() for name in ("load", "prefill", "decode")}

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        kind = getattr(record, "guard_kind", "")
        details = getattr(record, "guard_details", {})
        self.kinds[kind] += 1
        if kind == "engine.died":
            pid = details["pid"]
            if pid in self.deaths:
                self.died_twice.append(pid)
            now: float = record.guard_time  # type: ignore[attr-defined]
            self.deaths[pid] = Died(pid, details["how"], details["work"], now)
        elif kind == "engine.started":
            self.started.add(details["pid"])
        elif kind == "request.interrupted":
            self.interrupted.add(record.guard_request_id)  # type: ignore[attr-defined]

    def moved(self, progress: Progress) -> None:
        """For `on_progress`."""
        if progress.stage in self._moments:
            self._moments[progress.stage].set()

    def heard(self) -> None:
        """A client got a piece of an answer."""
        self._moments["decode"].set()

    def wait_for(self, moment: str) -> bool:
        """Wait until it comes again. Returns whether it did, in time."""
        self._moments[moment].clear()
        return self._moments[moment].wait(MOMENT_LIMIT)


class Killer:
    """Strikes one worker after the other. Used by one thread.

    Args:
        models: names of models, to ask for their unload.
        stall_timeout: of the backend, seconds.

    Attributes:
        kills: how often, by kind and by what the worker was doing.
        moments: how often each was chosen.
        late: seconds until the record told of each death by a signal that ends at once.
        struck: process ids.
    """

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        dice: Random,
        *,
        models: tuple[str, ...],
        stall_timeout: float,
        fault: Callable[[str], None],
    ) -> None:
        self._backend = backend
        self._journal = journal
        self._dice = dice
        self._models = models
        self._stall_timeout = stall_timeout
        self._fault = fault
        self._idle = 0  # workers in a row that died before they worked
        self._signals = deal(SIGNALS, dice)
        self._moments = deal(MOMENTS, dice)
        self._starts = deal(("hello", "import"), dice)
        self._plants = deal(PLANTS, dice)
        self.kills: Counter[tuple[str, str]] = Counter()
        self.moments: Counter[str] = Counter()
        self.late: list[float] = []
        self.struck: set[int] = set()

    def strike(self) -> None:
        """One kill, at some moment; perhaps of a worker that has only just been spawned."""
        if self.struck and self._idle < IN_A_ROW and self._dice.random() < 0.3:
            moment = next(self._starts)
            pid = self._spawned()
            wait = (0.0, 0.15) if moment == "hello" else (0.15, IMPORT)
            time.sleep(self._dice.uniform(*wait))
            self._signal(pid, moment)
            return
        self._worker()
        moment = next(self._moments)
        if moment == "planted":
            self._plant()
        else:
            self._wait_for(moment)
            self._signal(self._worker(), moment)

    def _wait_for(self, moment: str) -> None:
        if moment == "unload":
            model = self._dice.choice(self._models)
            unload = functools.partial(self._backend.unload, model)
            threading.Thread(target=self._guarded, args=(unload,), daemon=True).start()
            time.sleep(self._dice.uniform(0, 0.3))
        elif moment == "between frames":
            self._journal.wait_for("decode")
            time.sleep(self._dice.uniform(0, 300e-6))
        elif moment == "any":
            time.sleep(self._dice.uniform(0, 4.0))
        else:
            self._journal.wait_for(moment)
            time.sleep(self._dice.uniform(0, 1.5 if moment == "decode" else 0.05))

    def _signal(self, pid: int, moment: str) -> None:
        kind = next(self._signals)
        now = time.monotonic()
        self._struck(pid, kind, moment)
        try:
            os.kill(pid, signal.Signals[kind])
        except ProcessLookupError:
            self._fault(f"the worker {pid} was gone before {kind} at {moment}")
            return
        self._await_death(pid, kind, now)

    def _plant(self) -> None:
        site, fault = next(self._plants)
        after = self._dice.randrange(40) if site == "step" else 0
        pid = self._worker()
        self._struck(pid, fault, f"planted in {site}")
        try:
            self._backend.run(functools.partial(plant, site, fault, after), label="plant")
            if site == "run":
                self._fault(f"{fault} in a run did not end the worker")
        except EngineDied:
            if site != "run":
                self._fault(f"the worker {pid} died while {fault} was planted in {site}")
        self._await_death(pid, fault, None)
        death = self._journal.deaths.get(pid)
        outside = fault == "MLX error" and site != "step"  # the engine notices it in the end
        if death is not None and death.work != site and not outside:
            self._fault(f"{fault} in a {site} of {pid} was blamed on {death.work or 'nothing'!r}")

    def _struck(self, pid: int, kind: str, moment: str) -> None:
        self.struck.add(pid)
        self.moments[moment] += 1

    def _await_death(self, pid: int, kind: str, since: float | None) -> None:
        """See that the record tells of it, and of the right cause."""
        limit = DEATH_LIMIT + 12 * self._stall_timeout
        death = soon(lambda: self._journal.deaths.get(pid), limit)
        if death is None:
            self._fault(f"nobody noticed that {kind} struck {pid}")
            return
        worked = pid in self._journal.started
        self._idle = 0 if worked else self._idle + 1
        if death.how not in CAUSES[kind] and not (death.how == "not_started" and not worked):
            self._fault(f"{kind} was taken for {death.how!r} (worker {pid}, {death.work!r})")
        self.kills[kind, death.work or ("idle" if worked else "starting")] += 1
        if since is not None and kind not in ("SIGSTOP", "SIGTERM"):
            self.late.append(death.time - since)

    def _spawned(self) -> int:
        """The process id of the next worker, as soon as there is one."""
        pid = soon(lambda: self._fresh(self._backend.worker_pid), SPAWN_LIMIT)
        if pid is None:
            raise TimeoutError(f"no new worker came in {SPAWN_LIMIT:.0f} s")
        return pid

    def _worker(self) -> int:
        """The process id of a worker that works."""
        pid = self._spawned()
        if soon(lambda: pid in self._journal.started, SPAWN_LIMIT) is None:
            raise TimeoutError(f"the worker {pid} did not get to work in {SPAWN_LIMIT:.0f} s")
        return pid

    def _fresh(self, pid: int | None) -> int | None:
        return None if pid in self.struck else pid

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self._fault(f"{type(error).__name__}: {error}")
