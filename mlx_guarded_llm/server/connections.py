"""Connections, none of which may be silent, stuck or one too many for long.

Uvicorn bounds the time between two requests and how much it reads of one. Here are the bounds
that are missing there, as a subclass of its protocol.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ..logs import get_logger
from .context import CROWDED
from .errors import HTTPError
from .openai.errors import error_body

logger = get_logger("server")

SPARE = 64  # connections beyond the limit that are told so; any more are dropped


class Connection(H11Protocol):
    """A client's connection.

    - The headers of a request must be complete within `limits.head_seconds`, from when the
      connection was opened, or from the first byte after the answer before. Otherwise it is
      closed.
    - While there is something to send, the client must take some of it within each
      `limits.send_seconds`. Otherwise the connection is aborted, and so is its request.
    - Of more connections than `limits.connections` the newest are refused, see `context.CROWDED`.

    Args:
        config: its application is one of `create_app`.
        server_state: see `H11Protocol`.
        app_state: see `H11Protocol`.
        _loop: see `H11Protocol`.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = cast(Any, config.app).state.context.settings.limits
        self._head = _Timer(self.loop)
        self._sending = _Timer(self.loop)
        self._unsent = 0  # bytes, at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        # So `pause_writing` says that something is not sent, and `resume_writing` that all is.
        transport.set_write_buffer_limits(high=0)
        excess = len(self.connections) - self._limits.connections
        if excess > SPARE:
            transport.abort()
            return
        if excess > 0:
            self.app_state = {**self.app_state, CROWDED: True}
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._head.stop()
        self._sending.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._sending.stop()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of an API."""
        del msg
        hint = "Headers may have 16 KiB in all."
        self._refuse(HTTPError(400, "invalid_request", "this is no valid HTTP request.", hint=hint))

    def _should_upgrade(self) -> bool:
        """No: a request to upgrade is answered as any other, without a warning in the log."""
        return False

    def _watch_head(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._head.stop()  # a request is there
        elif not self._head.running:
            self._head.start(self._limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        within = f"within {self._limits.head_seconds:g} s"
        self._refuse(HTTPError(408, "timeout", f"the headers did not arrive {within}."))

    def _watch_unsent(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._sending.start(self._limits.send_seconds, self._check_unsent)

    def _check_unsent(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch_unsent()
            return
        logger.info("a client has taken nothing for %g s: aborted", self._limits.send_seconds)
        self.transport.abort()

    def _refuse(self, error: HTTPError) -> None:
        """Say why, where nothing else is being said, and close."""
        logger.info("a connection is closed: %s", error)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(error)).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # nobody takes what its request would still say
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


class _Timer:
    """Calls something after a while, unless it is stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, then: Callable[[], None]) -> None:
        self.stop()
        self._handle = self._loop.call_later(seconds, then)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
