"""What the worker does: it hands the parent's commands to the engine."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...engine.engine import Engine
from ...engine.importing import import_residents
from ...engine.protocol import Broken, Delta, FirstToken, JobEnded, Report
from ...engine.thread import mlx_thread
from ...errors import GuardedLLMError
from ...logs import handle_at_once
from ...models.gpus import see_one_gpu
from ...version import __version__
from ..pickling import pack_outcome
from ..status_page import StatusWriter
from ..wire import PROTOCOL, FrameReader, Hello, Imported, Joining, Logged, Welcome, greeting
from .outbox import Outbox
from .ranks import StartedRanks

CONDEMNED = 70  # exit status after an error of MLX that spoils all later results
BROKEN = 71  # exit status after an error that leaves no other way to tell

_ROOT = Path(__file__).parents[3]


class Serving:
    """The engine, and the worker's ends of its connections to the parent.

    Args:
        sock: to the parent.
        status: where the engine notes what it does.

    Attributes:
        exit_code: to leave with.
        unasked: it stops, and not because the parent said so. The requests that this ends
            have not ended for the parent, which continues them in another worker.
    """

    def __init__(self, sock: socket.socket, status: StatusWriter) -> None:
        self.exit_code = 0
        self.unasked = False
        self._socket = sock
        self._status = status
        self._engine: Engine | None = None
        self._ranks: StartedRanks | None = None
        hello = Hello(
            protocol=PROTOCOL,
            version=__version__,
            python=platform.python_version(),
            at=time.monotonic(),
        )
        sock.sendall(greeting(hello))
        self._outbox = Outbox(sock, failed=self._unsendable)
        self._logger = logging.getLogger("mlx_guarded_llm")
        handle_at_once()
        self._logger.addHandler(_ToParent(self._outbox))
        self._logger.propagate = False
        self._gpus = see_one_gpu()
        mlx_thread().post(self._import)

    def serve(self) -> None:
        """Carry out commands until the parent hangs up or the engine is broken."""
        messages = self._messages()
        welcome = next(messages, None)
        if welcome is None:
            return
        assert isinstance(welcome, Welcome)
        self._logger.setLevel(welcome.log_level)
        # Not before MLX is imported: it is a namespace package, and any folder of that name on
        # the path would shadow it.
        mlx_thread().post(lambda: _look_in(welcome.sys_path))
        path = "\n".join([str(_ROOT), *sys.path, *welcome.sys_path])
        self._ranks = StartedRanks(
            path,
            self._gpus,
            welcome.options.prepare_timeout,
            lost=self._rank_lost,
            joining=lambda ranks: self._outbox.put(Joining(ranks)),
        )
        self._engine = Engine(self._emit, welcome.options, self._status, self._ranks)
        mlx_thread().post(lambda: mlx_thread().add(_Flusher(self._outbox)))
        for command in messages:
            self._engine.send(command)

    def stop(self) -> None:
        """Drop all models, and send what is left to send."""
        if self._engine is not None:
            self._engine.close()
        atexit._run_exitfuncs()  # ends the MLX thread, in a minute at most
        if self._ranks is not None:
            self._ranks.stop()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # nobody reads it any more, or a function of a caller's has closed it

    def _messages(self) -> Iterator[Any]:
        reader = FrameReader()
        while data := self._receive():
            yield from reader.feed(data)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(256 * 1024)
        except ConnectionError:  # the parent was killed
            return b""

    def _emit(self, report: Report) -> None:
        if self.unasked:
            return
        if isinstance(report, (Delta, FirstToken)):
            self._outbox.hold(report)  # the other streams' tokens of this step come as well
            return
        self._outbox.put(pack_outcome(report) if isinstance(report, JobEnded) else report)
        if isinstance(report, Broken):
            self.unasked = True  # what it still has goes on in the next engine
            self.exit_code = CONDEMNED
            self._socket.shutdown(socket.SHUT_RD)  # `serve` comes to its end

    def _rank_lost(self, error: GuardedLLMError, outside: bool) -> None:
        """Another rank is gone, and with it a part of a model. On another thread."""
        self._emit(Broken(error, lost=outside))

    def _unsendable(self, error: Exception) -> None:
        traceback.print_exception(error)
        os._exit(BROKEN)

    def _import(self) -> None:
        began = time.monotonic()
        gc.disable()
        try:
            import_residents()
        except Exception:
            return  # the engine tries again, and tells
        except BaseException:  # it would end the thread, and nobody would know
            traceback.print_exc()
            os._exit(BROKEN)
        finally:
            # What was imported stays: no collection between two tokens goes through it.
            gc.freeze()
            gc.enable()
        self._outbox.put(Imported(time.monotonic() - began))


class _Flusher:
    """Has its turn on the MLX thread after the engine's: a step has ended; `thread.Steppable`."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def step(self) -> bool:
        self._outbox.flush()
        return False

    def generating(self) -> set[str]:
        return set()

    def stop(self) -> None:
        self._outbox.flush()
        mlx_thread().remove(self)


class _ToParent(logging.Handler):
    """Sends what the library logs here to the parent's log."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._outbox.put(Logged(name=record.name, level=record.levelno, text=text))


def _look_in(paths: Sequence[str]) -> None:
    sys.path += [path for path in paths if path not in sys.path]
