"""A worker's process: started, waited on, and stopped."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import psutil

from ...errors import EngineDied
from ...logs import get_logger
from ..status_page import StatusReader
from .output import Output
from .spawn import CannotStart, spawn

logger = get_logger("worker")

GRACE = 5.0  # seconds for a stop
GRACE_PER_GIB = 1.0  # more of them; releasing the memory of a GPU takes time
KILL_GRACE = 10.0  # seconds after SIGKILL
GIB = 1024**3


class WorkerProcess:
    """One child. It imports MLX at once, and then waits for commands on the socket.

    Making one never raises: see `failure`.

    Attributes:
        began: when it was started, seconds of `time.monotonic()`.
        pid: process id; 0 if there is none.
        ended: set once it is gone, or was never there.
        code: its exit status as `subprocess` gives it; None before, and if it is unknown.
        failure: why it could not be started, or None.
        asked: it was told to stop.
        status: what it notes about itself; None if it could not be started.
        output: what it prints; None if it could not be started.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.pid = 0
        self.code: int | None = None
        self.ended = threading.Event()
        self.failure: EngineDied | None = None
        self.asked = False
        self._socket: socket.socket | None = None
        self._taken = False
        self.status: StatusReader | None = None
        self.output: Output | None = None
        self._lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []
        # On Linux a worker dies with the thread that started it: this one waits for its end.
        started = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(started,), name="mlx-guarded-worker", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system has none left, for the moment
            self.failure = EngineDied(f"the worker cannot be started now: {error}.")
            self.ended.set()
            return
        started.wait()

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return not self.ended.is_set()

    @property
    def rss(self) -> int:
        """Resident bytes; 0 once it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.alive else 0
        except psutil.Error:
            return 0

    def take_socket(self) -> socket.socket | None:
        """The parent's end, for the caller to close; None if it is gone."""
        with self._lock:
            self._taken = self._taken or self.alive
            return self._socket if self.alive else None

    def watch(self, call: Callable[[], None]) -> None:
        """Call `call` when it has ended, on some thread; at once if it has."""
        with self._lock:
            if self.alive:
                self._watchers.append(call)
                return
        call()

    def signal(self, number: int) -> None:
        """Send a signal, unless it is gone."""
        with self._lock:  # the number of a process that was waited for may be another's
            if self.alive:
                with contextlib.suppress(ProcessLookupError):  # waited for, and not yet told
                    os.kill(self.pid, number)

    def hang_up(self) -> None:
        """Tell it to stop, and no more. It may still say something."""
        self.asked = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is closed: it was told before, or is gone

    def stop(self) -> None:
        """Have it stop, gently at first. Never blocks."""
        self.hang_up()
        try:
            threading.Thread(target=self.end, name="mlx-guarded-stop", daemon=True).start()
        except RuntimeError:  # the interpreter is exiting: `_end_all` comes, or is there
            logger.debug("worker %d is left to the exit", self.pid)

    def end(self) -> None:
        """Stop it, and return when it is gone: gently, then by SIGTERM, at last by SIGKILL."""
        grace = GRACE + GRACE_PER_GIB * self.rss / GIB
        self.hang_up()
        if self.ended.wait(grace):
            return
        logger.warning("worker %d has not stopped in %.0f s; SIGTERM", self.pid, grace)
        self.signal(signal.SIGTERM)
        if self.ended.wait(grace):
            return
        logger.error("worker %d has not stopped in %.0f s more; SIGKILL", self.pid, grace)
        self.signal(signal.SIGKILL)
        if not self.ended.wait(KILL_GRACE):
            self.give_up()

    def give_up(self) -> None:
        """Stop waiting for it, although SIGKILL did not end it: a driver holds it."""
        logger.critical("worker %d does not die of SIGKILL; it is left behind", self.pid)
        self._over(None)

    def abandon(self) -> None:
        """In a forked child: the worker is the parent's, and must not stay alive because of us."""
        if self._socket is not None:
            self._socket.close()
        if self.output is not None:
            self.output.abandon()

    # ---- its thread --------------------------------------------------------------

    def _run(self, started: threading.Event) -> None:
        popen = None
        try:
            popen = self._spawn()
        finally:
            if popen is None:
                self.ended.set()
            started.set()
        if popen is not None:
            self._wait(popen)

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        if _exiting:
            self.failure = CannotStart("the interpreter is exiting.")
            return None
        try:
            spawned = spawn()
        except CannotStart as error:
            self.failure = error
            return None
        except OSError as error:
            self.failure = EngineDied(f"the worker cannot be started now: {error}.")
            return None
        try:
            self.output = Output(spawned.stdout, spawned.stderr)
        except (RuntimeError, OSError) as error:  # no thread, or no descriptor, is left for it
            spawned.popen.kill()
            spawned.popen.wait()
            spawned.socket.close()
            spawned.status.close()
            for descriptor in (spawned.stdout, spawned.stderr):
                os.close(descriptor)
            self.failure = EngineDied(f"the worker cannot be started now: {error}.")
            return None
        self._socket = spawned.socket
        self.status = spawned.status
        self.pid = spawned.popen.pid
        _live.add(self)
        return spawned.popen

    def _wait(self, popen: subprocess.Popen[bytes]) -> None:
        try:
            # Not Popen.wait(), which takes an unknown exit status for 0.
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # SIGCHLD is ignored here, or somebody waits for all children
            code = None
        popen.returncode = code or 0  # so that it never waits itself
        self._over(code)

    def _over(self, code: int | None) -> None:
        with self._lock:
            if self.alive:
                self.code = code
                self.ended.set()
                if self._socket is not None and not self._taken:
                    self._socket.close()
            watchers, self._watchers = self._watchers, []
        _live.discard(self)
        for call in watchers:
            call()


_live: set[WorkerProcess] = set()
_exiting = False


def _end_all() -> None:
    """At exit: no worker is left, and none is made any more."""
    global _exiting
    _exiting = True
    processes = tuple(_live)
    for process in processes:
        process.hang_up()
    for process in processes:
        process.end()


def _forked() -> None:
    for process in tuple(_live):
        process.abandon()
    _live.clear()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_forked)
