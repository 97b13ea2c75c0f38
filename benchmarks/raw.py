"""Raw mlx-lm, the limit: nothing between the caller and its generators but a pipe."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import psutil

from .side import Ask, CannotRun, Heard, Setup, Side

WORKER = Path(__file__).with_name("raw_worker.py")
GRACE = 10.0  # seconds for the worker to leave
LAST_WORDS = 2000  # characters of its stderr


class WorkerEnded(Exception):
    """The process is gone; the text is the last it wrote."""


class Raw(Side):
    """mlx-lm in a process of its own, one command at a time.

    An ask alone is `stream_generate`. Several of one model at once are the rows of one
    `BatchGenerator`. Those of several models are answered one after the other: mlx-lm has
    nothing that runs two models at once. A model that is not loaded is loaded when it is
    asked; with `fits_one` the other one goes first. `prefix_cache` is for asks alone.

    Args:
        folded: the rows of a batch are folded in its models, as in ours on CUDA.

    Attributes:
        device: what MLX computes on, once open.
    """

    name = "raw mlx-lm"
    version = metadata.version("mlx-lm")

    def __init__(self, *, folded: bool = False) -> None:
        super().__init__()
        self.device = ""
        self._folded = folded
        if folded:
            self.name = f"{Raw.name}, folded"
        self._setup: Setup | None = None
        self._loaded: list[str] = []
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[str] | None = None
        self._stderr: IO[str] | None = None

    def open(self, setup: Setup) -> None:
        self._setup = setup
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - until close
        self._popen = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        try:
            self.device = self._do("hello", prefix_cache=setup.prefix_cache, folded=self._folded)[
                "device"
            ]
            for name in setup.loaded:
                self.load(name)
        except (RuntimeError, WorkerEnded) as error:
            self.close()
            raise CannotRun(str(error)) from error

    def ask(self, ask: Ask) -> Heard:
        began = time.monotonic()
        try:
            with self._lock:
                self._need(ask.model)
                return Heard(began=began, error="", **_received(self._do("ask", ask=asdict(ask))))
        except (RuntimeError, WorkerEnded) as error:
            return _failed(began, error)

    def together(self, asks: Sequence[Ask]) -> list[Heard]:
        if len({ask.model for ask in asks}) > 1 or len(asks) == 1:
            return [self.ask(ask) for ask in asks]
        return self.batched(asks)

    def batched(self, asks: Sequence[Ask]) -> list[Heard]:
        """Asks of one model as the rows of one `BatchGenerator`, `Ask.after` obeyed."""
        began = time.monotonic()
        try:
            with self._lock:
                self._need(asks[0].model)
                answers = self._do("batch", asks=[asdict(ask) for ask in asks])["answers"]
        except (RuntimeError, WorkerEnded) as error:
            return [_failed(began, error) for _ in asks]
        return [Heard(error="", **_received(answer)) for answer in answers]

    def load(self, model: str) -> float:
        """Load a model. Returns the seconds that it took."""
        assert self._setup is not None
        reply = self._do("load", model=model, folder=str(self._setup.models[model]))
        self._loaded.append(model)
        return float(reply["seconds"])

    def unload(self, model: str) -> None:
        """Drop a model, if it is loaded."""
        if model in self._loaded:
            self._do("unload", model=model)
            self._loaded.remove(model)

    def close(self) -> None:
        if self._popen is not None:
            assert self._popen.stdin is not None and self._popen.stdout is not None
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
            self._end(self._popen)
            self._popen.stdout.close()
            self._popen = None
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None
        self._loaded.clear()

    def processes(self) -> list[psutil.Process]:
        if self._popen is None or self._popen.poll() is not None:
            return []
        return [psutil.Process(self._popen.pid)]

    def _need(self, model: str) -> None:
        assert self._setup is not None
        if model in self._loaded:
            return
        if self._setup.fits_one:
            for other in tuple(self._loaded):
                self.unload(other)
        self.load(model)

    def _do(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Have the worker do something, and wait for it.

        Raises:
            RuntimeError: it could not; with its error.
            WorkerEnded: it is gone.
        """
        assert self._popen is not None, "the side is not open"
        assert self._popen.stdin is not None and self._popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._popen.stdin.flush()
        line = self._popen.stdout.readline()
        if not line:
            self._end(self._popen)  # its pipe closes before it is gone
            raise WorkerEnded(self._last_words())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def _end(self, popen: subprocess.Popen[str]) -> None:
        """Wait until it is gone, which it should be soon."""
        try:
            popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()

    def _last_words(self) -> str:
        assert self._stderr is not None
        self._stderr.seek(0)
        return "the process ended: " + self._stderr.read()[-LAST_WORDS:].strip()


def _received(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "pieces": tuple(answer["pieces"])}


def _failed(began: float, error: Exception) -> Heard:
    now = time.monotonic()
    return Heard(began=began, pieces=(), ended=now, tokens=0, text="", error=str(error))
