"""What the worker does: it has the engine do what the parent says."""

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
from typing import Any

from .. import __version__
from ..engine.engine import Engine
from ..engine.protocol import Broken, Delta, FirstToken, JobEnded, Report
from ..engine.thread import mlx_thread
from .blackbox import BlackBox
from .outbox import Outbox
from .parcel import pack_outcome
from .wire import PROTOCOL, FrameReader, Hello, Imported, Logged, Welcome, greeting

CONDEMNED = 70  # exit status after an error of MLX that spoils all later results
BROKEN = 71  # exit status after an error that leaves no other way to tell


class Serving:
    """The engine, and the worker's ends of what joins it to the parent.

    Args:
        sock: to the parent.
        box: told of what the engine does.

    Attributes:
        status: to leave with.
        unasked: it stops, and not because the parent said so. What ends by that has not
            ended for the parent, which has another worker go on with it.
    """

    def __init__(self, sock: socket.socket, box: BlackBox) -> None:
        self.status = 0
        self.unasked = False
        self._socket = sock
        self._box = box
        self._engine: Engine | None = None
        hello = Hello(
            protocol=PROTOCOL,
            version=__version__,
            python=platform.python_version(),
            at=time.monotonic(),
        )
        sock.sendall(greeting(hello))
        self._outbox = Outbox(sock, failed=self._unsendable)
        self._logger = logging.getLogger("mlx_guarded_llm")
        self._logger.addHandler(_ToParent(self._outbox))
        self._logger.propagate = False
        mlx_thread().post(self._import)

    def serve(self) -> None:
        """Do what the parent says, until it hangs up or the engine is broken."""
        messages = self._messages()
        welcome = next(messages, None)
        if welcome is None:
            return
        assert isinstance(welcome, Welcome)
        self._logger.setLevel(welcome.log_level)
        # Not before MLX is imported: it is a namespace package, which any folder of its name
        # would shadow, wherever on the path.
        mlx_thread().post(lambda: _look_in(welcome.sys_path))
        self._engine = Engine(self._emit, welcome.options, self._box)
        mlx_thread().post(lambda: mlx_thread().add(_Flusher(self._outbox)))
        for command in messages:
            self._engine.send(command)

    def stop(self) -> None:
        """Drop all models, and send what there is to say."""
        if self._engine is not None:
            self._engine.close()
        atexit._run_exitfuncs()  # ends the MLX thread, in a minute at most
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass  # nobody reads it any more

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
            self.status = CONDEMNED
            self._socket.shutdown(socket.SHUT_RD)  # `serve` comes to its end

    def _unsendable(self, error: Exception) -> None:
        traceback.print_exception(error)
        os._exit(BROKEN)

    def _import(self) -> None:
        began = time.monotonic()
        gc.disable()
        try:
            from ..engine import residents  # noqa: F401
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
    """Has its turn on the MLX thread after the engine's: a step has ended. See `thread.Worker`."""

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
