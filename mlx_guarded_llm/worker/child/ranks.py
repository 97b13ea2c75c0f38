"""The other ranks of a group: their processes, started and ended by the worker."""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...engine.ranks.orders import Beat, Done, Order
from ...errors import EngineDied, GuardedLLMError, HostUnavailable, InvalidRequest
from ...logs import get_logger
from ...memory.rank_limit import rank_budgets
from ...models.gpus import VARIABLE
from ...models.hosts import Host, Hosts
from ...version import __version__
from ..wire import MARK, PROTOCOL, FrameReader, frame, read_greeting

logger = get_logger("worker")

_PROGRAM = Path(__file__).with_name("__main__.py")
_MODULE = "mlx_guarded_llm.worker.rank"
_CONNECT = 10  # seconds for ssh to connect
_KEPT = 4096  # bytes of stderr
_GRACE = 5.0  # seconds for a rank to free its memory
_LAST = 1.0  # seconds for reading the last that it wrote
_BEAT = 5.0  # seconds between two signs of life; `rank.main` waits for six of them
_LEFT = object()  # what its queue gets when it is gone
# Exit statuses that say nothing about the model: ended from outside, or ssh lost the connection.
_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM, 255)


class RankProcess:
    """One other rank, behind a pipe in each direction.

    Its stdin is the pipe of orders: at its end it stops. So it outlives neither this process nor
    an `ssh` in between.

    Args:
        rank: its number.
        host: where it runs.
        here: that is this machine.
        path: where this process finds its package, and other modules.
        gpus: of this machine, as `visible_gpus` names them.
        gone: called on another thread when it ended and nobody asked for that.

    Raises:
        HostUnavailable: there is no way to start it.
    """

    def __init__(
        self,
        rank: int,
        host: Host,
        here: bool,
        path: str,
        gpus: Sequence[str],
        gone: Callable[[RankProcess], None],
    ) -> None:
        self.rank = rank
        self.host = host
        self.here = here
        self.asked = False
        self._gone = gone
        self._stderr = b""
        self._telling = threading.Lock()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        gpu = self._own_gpu(gpus) if here else {}
        try:
            self._popen = subprocess.Popen(
                _command(host, here),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=os.environ | {"MLX_GUARDED_WORKER_PATH": path} | gpu if here else None,
            )
        except OSError as error:
            raise HostUnavailable(
                f"{self} cannot be started: {error}.", hint="Is ssh installed?"
            ) from None
        self._errors = self._thread(self._read_stderr)
        self._thread(self._read_answers)

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host.ssh}"

    @property
    def pid(self) -> int:
        """Of its process, or of the `ssh` in between."""
        return self._popen.pid

    def tell(self, order: Order) -> None:
        """Send an order. If the process is gone, `gone` is told."""
        assert self._popen.stdin is not None
        with self._telling, contextlib.suppress(OSError, ValueError):
            data = memoryview(frame([order]))
            while data:
                data = data[self._popen.stdin.write(data) :]

    def answer(self, until: float | None) -> Any:
        """The next thing that it says.

        Raises:
            HostUnavailable: it is gone, or `until` (of `time.monotonic()`) is over.
        """
        try:
            wait = None if until is None else max(0.0, until - time.monotonic())
            found = self._answers.get(timeout=wait)
        except queue.Empty:
            raise self._unavailable("did not answer in time") from None
        if found is _LEFT:
            self._answers.put(_LEFT)
            raise self._unavailable(self.ending)
        return found

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self._popen.poll()
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
        return f"left with status {code}"

    @property
    def outside(self) -> bool:
        """It was ended from outside, or its machine cannot be reached any more."""
        return self._popen.poll() in _OUTSIDE

    @property
    def excerpt(self) -> str:
        """The last lines that it wrote to stderr."""
        lines = self._stderr.decode(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-3:])

    def hang_up(self) -> None:
        """Tell it to stop."""
        self.asked = True
        with contextlib.suppress(OSError):
            if self._popen.stdin is not None:
                self._popen.stdin.close()

    def end(self, grace: float) -> None:
        """Stop it; it is gone when this returns."""
        self.hang_up()
        try:
            self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def _own_gpu(self, gpus: Sequence[str]) -> dict[str, str]:
        """The variable that gives it a GPU of this machine."""
        if self.host.gpu is None:
            return {}
        if self.host.gpu >= len(gpus):
            raise HostUnavailable(
                f"{self} is to have GPU {self.host.gpu}; MLX can use {len(gpus)} here.",
                hint=f"Each rank takes a GPU of its own. {VARIABLE} may leave some out.",
            )
        return {VARIABLE: gpus[self.host.gpu]}

    def _unavailable(self, what: str) -> HostUnavailable:
        text = f"{self} {what}."
        if self.excerpt:
            text += f" It wrote: {self.excerpt}"
        return HostUnavailable(
            text,
            hint=""
            if self.here
            else f"Try `ssh {self.host.ssh} {shlex.quote(self.host.python or sys.executable)} "
            f"-m {_MODULE} --version`.",
        )

    def _thread(self, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"mlx-guarded-rank-{self.rank}", daemon=True)
        thread.start()
        return thread

    def _read_stderr(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as stderr:
            while data := stderr.read(4096):
                self._stderr = (self._stderr + data)[-_KEPT:]
                sys.stderr.write(data.decode(errors="replace"))

    def _read_answers(self) -> None:
        reader = FrameReader()
        before: bytes | None = b""  # what a shell says before the program starts; None after that
        assert self._popen.stdout is not None
        try:
            with self._popen.stdout as stdout:
                while data := stdout.read(65536):
                    if before is not None:
                        said, begins, data = (before + data).partition(MARK)
                        before = None if begins else said[-_KEPT:]
                        if not begins:
                            continue
                    for message in reader.feed(data):
                        self._answers.put(message)
        except EngineDied as error:
            logger.error("%s: %s", self, error)
            self._popen.kill()
        self._popen.wait()
        self._errors.join(_LAST)
        self._answers.put(_LEFT)
        if not self.asked:
            self._gone(self)


class StartedRanks:
    """Starts the other ranks, and speaks with all of them; see `engine.ranks.ranks.Ranks`.

    Args:
        path, gpus: see `RankProcess`.
        patience: seconds in which all of them must run.
        lost: called on another thread, with the reason and whether it came from outside, when a
            rank ends after they are a group.
        joining: called with the process id and the name of each when they become a group, which
            stops all threads of this process, and with nothing when they are one.
    """

    def __init__(
        self,
        path: str,
        gpus: Sequence[str],
        patience: float,
        lost: Callable[[GuardedLLMError, bool], None],
        joining: Callable[[tuple[tuple[int, str], ...]], None],
    ) -> None:
        self._path = path
        self._gpus = gpus
        self._patience = patience
        self._lost = lost
        self._joining = joining
        self._lock = threading.Lock()  # held while they are started, and ended
        self._hosts: Hosts | None = None
        self._ranks: tuple[RankProcess, ...] = ()
        self._budgets: Sequence[int] = ()
        self._formed = False
        self._stopped = threading.Event()
        self._beating = False
        self._one_lost = threading.Event()

    def ready(self, hosts: Hosts) -> Sequence[int]:
        """See `Ranks.ready`."""
        hosts = replace(hosts, sharding=None)
        with self._lock:
            if self._hosts == hosts:
                return self._budgets
            if self._formed or self._stopped.is_set():
                raise InvalidRequest(
                    f"hosts is {hosts}; the models of this backend are spread over {self._hosts}.",
                    hint="An engine has one group: use the same hosts, or another Backend.",
                )
            self._end()  # they were to be a group with others, and never were
            try:
                self._budgets = rank_budgets(hosts, [0, *self._start(hosts)])
            except GuardedLLMError:
                self._end()
                raise
            self._hosts = hosts
            return self._budgets

    def _start(self, hosts: Hosts) -> list[int]:
        """Start them. Returns the default budget of each one's device, in bytes."""
        until = time.monotonic() + self._patience
        if not self._beating:
            self._beating = True
            threading.Thread(target=self._beat, name="mlx-guarded-beat-ranks", daemon=True).start()
        for rank, host in enumerate(hosts.hosts[1:], start=1):
            here = hosts.is_here(host)
            self._ranks += (RankProcess(rank, host, here, self._path, self._gpus, self._gone),)
        for each in self._ranks:
            _check_version(each, each.answer(until))
        answers = [each.answer(until) for each in self._ranks]  # they have imported MLX
        for answer in answers:
            _check(answer)
        return [answer.nbytes for answer in answers]

    def tell(self, *orders: Order) -> None:
        """See `Ranks.tell`."""
        for i, rank in enumerate(self._ranks):
            rank.tell(orders[0] if len(orders) == 1 else orders[i])

    def answers(self, seconds: float | None) -> list[Done]:
        """See `Ranks.answers`."""
        until = None if seconds is None else time.monotonic() + seconds
        try:
            return [rank.answer(until) for rank in self._ranks]
        except HostUnavailable:
            if self._formed:
                self.await_loss(_LAST)
            raise

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """See `Ranks.joining`."""
        self._formed = True
        self._joining(tuple((rank.pid, str(rank)) for rank in self._ranks))
        try:
            yield
        except BaseException:
            self._formed = False
            raise
        finally:
            self._joining(())

    def await_loss(self, seconds: float) -> None:
        """See `Ranks.await_loss`."""
        self._one_lost.wait(seconds)

    def end(self) -> None:
        """See `Ranks.end`."""
        with self._lock:
            self._end()

    def stop(self) -> None:
        """The engine has ended: end them, and start no others."""
        with self._lock:
            self._stopped.set()
            self._end(_GRACE)

    def _beat(self) -> None:
        while not self._stopped.wait(_BEAT):
            for rank in self._ranks:
                rank.tell(Beat())

    def _end(self, grace: float = _LAST) -> None:
        ranks, self._ranks, self._hosts = self._ranks, (), None
        for rank in ranks:
            rank.hang_up()
        for rank in ranks:
            rank.end(grace)

    def _gone(self, rank: RankProcess) -> None:
        if self._formed:
            text = f"{rank}, which has a part of the model, {rank.ending}."
            self._lost(EngineDied(text), rank.outside)  # what it wrote is in this stderr too
            self._one_lost.set()


def _check(done: Done) -> None:
    if done.error is not None:
        raise done.error


def _check_version(rank: RankProcess, message: Any) -> None:
    hello = read_greeting(message)
    if (hello.version, hello.protocol) != (__version__, PROTOCOL):
        raise HostUnavailable(
            f"{rank} has mlx-guarded-llm {hello.version}, and this machine {__version__}.",
            hint="Install the same version on every machine.",
        )


def _command(host: Host, here: bool) -> Sequence[str]:
    python = host.python or sys.executable
    if here:
        return [python, "-P", "-u", "-X", "faulthandler", str(_PROGRAM), "rank"]
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT}"]
    options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
    run = [python, "-u", "-X", "faulthandler", "-m", _MODULE]
    if host.gpu is not None:
        run = ["env", f"{VARIABLE}={host.gpu}", *run]
    return ["ssh", *options, host.ssh, shlex.join(run)]
