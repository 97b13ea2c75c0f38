"""The engine in a child process, with the same methods as the engine itself."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from ...engine.protocol import (
    Broken,
    Command,
    Ended,
    EngineOptions,
    JobEnded,
    Load,
    PrepareLoad,
    Ready,
    Report,
    Run,
    Stopped,
    Unload,
)
from ...errors import EngineDied, GuardedLLMError, InvalidRequest
from ...logs import get_logger
from ...version import __version__
from ..pickling import unpack_outcome
from ..wire import PROTOCOL, Imported, Joining, Logged, Welcome, WireBroken, read_greeting
from .channel import Channel
from .death import Death, Died, read_death
from .joining import JoiningRanks
from .oom import oom_kills
from .process import KILL_GRACE, WorkerProcess
from .spawn import CannotStart, search_path
from .watchdog import Watchdog

logger = get_logger("worker")

START_PATIENCE = 10.0  # stall timeouts for a start, until MLX works
LEAVE_GRACE = 5.0  # seconds for a worker that leaves by itself
DUMP_GRACE = 1.0  # seconds for a hung one to write down where it hangs
STDERR_GRACE = 0.1  # seconds for reading the last that it wrote


class WorkerEngine:
    """Runs an `Engine` in a process, from its start to its end.

    The last report is `Died` if the process ended without being asked, otherwise `Stopped`. If
    another process would fail in the same way, `Broken` comes in place of `Died`, and `Stopped`
    follows after `close`.

    Args:
        emit: takes each report, from whatever thread; it must not raise nor block.
        options: of the engine.
        stall_timeout: seconds without progress after which the worker is ended.
        process: one that was started before. None, or one that has ended, starts another.

    Attributes:
        pid: process id, 0 if none could be started.
        timings: seconds as they become known: "spawn" until the process ran, "import" of
            MLX, and "ready" until the engine worked, from the making of this.
    """

    def __init__(
        self,
        emit: Callable[[Report | Died], None],
        options: EngineOptions,
        *,
        stall_timeout: float = 60.0,
        process: WorkerProcess | None = None,
    ) -> None:
        self._began = time.monotonic()
        self._emit_to = emit
        self._options = options
        self._stall_timeout = stall_timeout
        self._watchdog = Watchdog(stall_timeout)
        self._oom_kills = 0
        self._process = process if process is not None and process.alive else WorkerProcess()
        self.pid = self._process.pid
        self.timings: dict[str, float] = {}
        self._lock = threading.Lock()  # of the next three
        self._early: list[Command] | None = []  # commands for when the worker is welcome
        self._closing = False
        self._over = False
        self._ready = False
        self._failure: GuardedLLMError | None = None  # another process would fail in the same way
        self._condemned = ""
        self._rank_lost = False
        self._joining = JoiningRanks()
        self._hung = ""
        self._look_at = 0.0
        self._kill_at: float | None = None
        sock = self._process.take_socket()
        self._channel = Channel(sock) if sock is not None else None
        try:
            threading.Thread(target=self._run, name="mlx-guarded-io", daemon=True).start()
        except RuntimeError:
            self._process.signal(signal.SIGKILL)  # nobody would read its messages
            if self._channel is not None:
                self._channel.close()
            raise

    def send(self, command: Command) -> None:
        """Carry out a command soon. From any thread; never blocks."""
        with self._lock:
            if self._early is not None:
                self._early.append(command)
                return
        self._put(command)

    def close(self) -> None:
        """Stop everything and give all memory back, soon. From any thread."""
        with self._lock:
            closing, self._closing = self._closing, True
            over = self._over
        if not over:
            self._process.stop()
        elif self._failure is not None and not closing:
            self._emit(Stopped())

    @property
    def stalled(self) -> float:
        """Seconds for which its process has made no progress, by the watchdog's last look."""
        return self._watchdog.stalled

    # ---- on the io thread, from here on ------------------------------------------

    def _run(self) -> None:
        self._oom_kills = oom_kills()
        try:
            if self._channel is not None:
                self._process.watch(self._channel.wake)
                self._serve(self._channel)
        except BaseException as error:
            if not isinstance(error, WireBroken):
                logger.exception("the host of worker %d failed", self.pid)
            self._condemned = str(error)
            self._process.signal(signal.SIGKILL)
            if not self._process.ended.wait(KILL_GRACE):
                self._process.give_up()
        self._finish()

    def _serve(self, channel: Channel) -> None:
        process = self._process
        while not process.ended.is_set():
            for message in channel.receive(self._interval()) or ():
                self._take(message)
            if channel.over and self._kill_at is None and not process.asked:
                self._kill_in(LEAVE_GRACE)
            if self._joining and not self._condemned:
                self._look_after_ranks()
            now = time.monotonic()
            if now >= self._look_at or self._kill_at is not None:
                self._look(now)
        while (messages := channel.receive(0)) is not None:  # messages from before its end
            for message in messages:
                self._take(message)

    def _take(self, message: Any) -> None:
        if self._failure is not None:
            return
        if self._early is not None:
            self._greet(message)
        elif isinstance(message, Logged):
            get_logger(message.name.removeprefix("mlx_guarded_llm").lstrip(".")).log(
                message.level, "%s", message.text
            )
        elif isinstance(message, Imported):
            self.timings["import"] = message.seconds
        elif isinstance(message, Joining):
            self._joining.watch(message.ranks)
        elif isinstance(message, Broken) and not self._ready:
            self._fail(message.error)
        elif isinstance(message, Broken):
            self._condemned = str(message.error)
            self._rank_lost = message.lost
            self._kill_in(LEAVE_GRACE)  # it leaves by itself, sooner
        elif isinstance(message, JobEnded):
            self._emit(unpack_outcome(message))
        elif not isinstance(message, Stopped):  # the end of the process tells that
            if isinstance(message, Ready):
                self._ready = True
                self.timings["ready"] = time.monotonic() - self._began
            self._emit(message)

    def _greet(self, message: Any) -> None:
        hello = read_greeting(message)
        if (hello.version, hello.protocol) != (__version__, PROTOCOL):
            self._fail(
                EngineDied(
                    f"this process runs mlx-guarded-llm {__version__} (protocol {PROTOCOL}), its "
                    f"worker {hello.version} (protocol {hello.protocol}).",
                    hint="It was installed anew meanwhile: restart this process, or the kernel.",
                )
            )
            return
        self.timings["spawn"] = hello.at - self._process.began
        level = logging.getLogger("mlx_guarded_llm").getEffectiveLevel()
        command: Command | Welcome | None = Welcome(
            options=self._options, sys_path=search_path(), log_level=level
        )
        while command is not None:
            self._put(command)  # without the lock: whoever hears of a failure may send
            with self._lock:
                command = self._early.pop(0) if self._early else None
                if command is None:
                    self._early = None

    def _interval(self) -> float:
        """Seconds until there is something to look after."""
        at = self._look_at if self._kill_at is None else self._kill_at
        interval = max(0.02, at - time.monotonic())
        return min(interval, self._joining.interval) if self._joining else interval

    def _look_after_ranks(self) -> None:
        self._condemned = self._joining.lost()
        if self._condemned:
            self._rank_lost = True
            self._process.signal(signal.SIGKILL)

    def _look(self, now: float) -> None:
        """End a worker that makes no progress, or does not leave."""
        process = self._process
        self._look_at = now + self._watchdog.interval
        if self._kill_at is not None:
            if now > self._kill_at + KILL_GRACE:
                process.give_up()
            elif now >= self._kill_at:
                if not self._hung and not self._condemned:
                    self._condemned = "it closed its socket and did not leave"
                process.signal(signal.SIGKILL)
            return
        if process.asked:
            return  # whoever asked it to stop waits for that
        assert process.status is not None
        self._hung = self._watchdog.look(now, process.status.read())
        waited = now - self._began
        if not self._hung and not self._ready and waited > START_PATIENCE * self._stall_timeout:
            self._hung = f"it was not ready in {waited:.0f} s"
        if self._hung:
            logger.error("worker %d is hung: %s", self.pid, self._hung)
            process.signal(signal.SIGABRT)  # faulthandler writes down where it stands
            self._kill_in(DUMP_GRACE)

    def _kill_in(self, seconds: float) -> None:
        self._kill_at = time.monotonic() + seconds

    def _fail(self, error: GuardedLLMError) -> None:
        self._failure = error
        self._emit(Broken(error))
        if self._process.alive:
            self._process.stop()

    def _finish(self) -> None:
        process = self._process
        self._joining.end()
        if process.output is not None:
            process.output.finish(STDERR_GRACE)
        if self._failure is None and isinstance(process.failure, CannotStart):
            self._fail(process.failure)
        death = self._death()
        if self._channel is not None:
            self._channel.close()
        if process.status is not None:
            process.status.close()
        with self._lock:
            self._over = True
            self._early = None
            closing = self._closing
        if self._failure is None and not closing and not process.asked:
            self._emit(Died(death))
        elif closing or self._failure is None:
            self._emit(Stopped())

    def _death(self) -> Death:
        process = self._process
        if process.failure is not None:
            return Death(cause="not_started", text=process.failure.message, pid=0)
        assert process.status is not None and process.output is not None
        return read_death(
            pid=process.pid,
            code=process.code,
            status=process.status.read(),
            stderr=process.output.stderr,
            lived=time.monotonic() - process.began,
            condemned=self._condemned,
            rank_lost=self._rank_lost,
            hung=self._hung,
            oom_kills=oom_kills() - self._oom_kills,
            started=self._ready,
            stuck=self._watchdog.stuck,
        )

    # ---- small things, on any thread ---------------------------------------------

    def _put(self, message: Command | Welcome) -> None:
        if self._channel is None:
            return  # there is no worker, and `_finish` reports that
        try:
            self._channel.put(message)
        except Exception as error:
            self._refuse(message, error)

    def _refuse(self, message: Command | Welcome, error: Exception) -> None:
        refused = InvalidRequest(f"it cannot go to the worker ({type(error).__name__}: {error}).")
        if isinstance(message, (Load, Unload, Run)):
            self._emit(JobEnded(job_id=message.job_id, error=refused))
        elif not isinstance(message, Welcome | PrepareLoad):
            self._emit(Ended(request_id=message.request_id, error=refused))

    def _emit(self, report: Report | Died) -> None:
        try:
            self._emit_to(report)
        except BaseException:  # a listener's SystemExit must not end this thread
            logger.exception("a report of worker %d was not taken", self.pid)
