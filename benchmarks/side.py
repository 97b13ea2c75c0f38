"""What a benchmark asks of each side it compares: us, raw mlx-lm, a peer.

A side serves one or two models, "large" and "small", and answers chat requests. All times
are seconds of `time.monotonic()` in this process, so what is counted is what a caller sees.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

STOP_GRACE = 2.0  # seconds for a process to stand still
_MOVING = (psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One chat request.

    Attributes:
        model: "large" or "small".
        messages: OpenAI-style.
        max_tokens: the answer's length; prompts are such that it is reached.
        options: of sampling, by OpenAI's and vLLM's names: temperature, top_p, top_k,
            min_p, seed, repetition_penalty, presence_penalty, frequency_penalty.
        after: seconds from the start of `together` at which it is sent.
    """

    messages: Sequence[Mapping[str, str]]
    max_tokens: int
    model: str = "large"
    options: Mapping[str, Any] = field(default_factory=dict)
    after: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What came of a request.

    Attributes:
        began: when it was sent.
        pieces: when each piece of text or thinking came.
        ended: when it was over.
        tokens: of the answer, as the side counts them.
        error: why there is no whole answer; then the rest tells how far it came.
        headers: when those of the answer came; None without HTTP, or if none came.
        model: which the answer says it is of; "" where it does not say.
    """

    began: float
    pieces: tuple[float, ...]
    ended: float
    tokens: int
    text: str
    error: str = ""
    headers: float | None = None
    model: str = ""

    @property
    def seconds(self) -> float:
        """From sending to the end."""
        return self.ended - self.began

    @property
    def first(self) -> float:
        """Seconds to the first piece; to the end if there was none."""
        return (self.pieces[0] if self.pieces else self.ended) - self.began

    @property
    def worst_gap(self) -> float:
        """The longest time between two pieces, in seconds."""
        return max((b - a for a, b in itertools.pairwise(self.pieces)), default=0.0)


@dataclass
class Hearing:
    """An answer while it comes.

    Attributes:
        began: when its request was sent.
        tokens: as the side tells them; None where it does not.
        pieces: when each piece came.
        texts: the pieces.
        headers: see `Heard`.
        model: see `Heard`.
    """

    began: float = field(default_factory=time.monotonic)
    tokens: int | None = None
    pieces: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    headers: float | None = None
    model: str = ""

    def take(self, text: str) -> None:
        """A piece of it came just now; an empty one is none."""
        if text:
            self.pieces.append(time.monotonic())
            self.texts.append(text)

    def heard(self, error: str = "") -> Heard:
        """It is over. Where its tokens are not known they are the pieces."""
        return Heard(
            began=self.began,
            pieces=tuple(self.pieces),
            ended=time.monotonic(),
            tokens=len(self.pieces) if self.tokens is None else self.tokens,
            text="".join(self.texts),
            error=error,
            headers=self.headers,
            model=self.model,
        )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a side is to be started.

    Attributes:
        models: folders of the models, by "large" and "small".
        fits_one: there is to be memory for one of the two at a time. A side that cannot be
            told so says it in `Side.notes`.
        prefix_cache: keep KV caches of prompts for later ones that begin alike.
        load_wait: see `Backend`; of our side only.
        loaded: models to load before anything is timed.
    """

    models: Mapping[str, Path]
    fits_one: bool = False
    prefix_cache: bool = False
    load_wait: float = 120.0
    loaded: Sequence[str] = ("large",)


class CannotRun(Exception):
    """A side that cannot take part, with the reason it gave."""


class Side(ABC):
    """One of those compared. `open` before anything else, `close` at the end.

    Attributes:
        name: in tables.
        version: of what is run, for the record.
        notes: what a reader must know of how it was run, such as what it lacks.
    """

    name: str
    version: str = ""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @abstractmethod
    def open(self, setup: Setup) -> None:
        """Start it and load `setup.loaded`.

        Raises:
            CannotRun: it does not start, or lacks what the setup asks for.
        """

    @abstractmethod
    def ask(self, ask: Ask) -> Heard:
        """Answer one request. From any thread; what goes wrong is in `Heard.error`."""

    @abstractmethod
    def close(self) -> None:
        """End it and all its processes. Also of one that was never open, or was closed."""

    @abstractmethod
    def processes(self) -> list[psutil.Process]:
        """Its processes, children included; none of them is this one."""

    def together(self, asks: Sequence[Ask]) -> list[Heard]:
        """Answer requests at once, each from a thread of its own, `Ask.after` obeyed."""
        heard: list[Heard | None] = [None] * len(asks)
        start = time.monotonic()

        def answer(i: int) -> None:
            time.sleep(max(0.0, start + asks[i].after - time.monotonic()))
            heard[i] = self.ask(asks[i])

        run_all([partial(answer, i) for i in range(len(asks))])
        return [h for h in heard if h is not None]

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Meanwhile its processes are stopped, so that they take nothing from another side."""
        stopped = self.processes()
        _signal(stopped, signal.SIGSTOP)
        try:
            _await_stopped(stopped)
            yield
        finally:
            _signal(stopped, signal.SIGCONT)


def run_all(calls: Sequence[Callable[[], None]]) -> None:
    """Run calls at once, each on a thread; returns when all have ended."""
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def family(pid: int | None) -> list[psutil.Process]:
    """A process and its children; [] if there is none, or it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if pid:
            parent = psutil.Process(pid)
            return [parent, *parent.children(recursive=True)]
    return []


def heaviest(processes: Sequence[psutil.Process]) -> psutil.Process:
    """The process with the most in memory: the one that has the model."""
    return max(processes, key=lambda process: int(process.memory_info().rss))


def await_end(processes: Sequence[psutil.Process], timeout: float) -> None:
    """Wait until killed processes have ended, at most `timeout` seconds for all of them.

    A signal takes a moment to arrive. Those whose parent has not asked for their exit
    status, zombies, have ended too.
    """
    _wait_while(is_running, processes, timeout)


def is_running(process: psutil.Process) -> bool:
    """Whether it has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _await_stopped(processes: Sequence[psutil.Process]) -> None:
    """Wait until signals have arrived; what ends or will not stop is not waited for."""
    _wait_while(lambda process: process.status() in _MOVING, processes, STOP_GRACE)


def _wait_while(
    state: Callable[[psutil.Process], bool], processes: Sequence[psutil.Process], timeout: float
) -> None:
    """Wait until no process is in a state, at most `timeout` seconds for all of them."""
    deadline = time.monotonic() + timeout
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while state(process) and time.monotonic() < deadline:
                time.sleep(0.001)


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
