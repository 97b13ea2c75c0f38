"""`mlx-guarded stop`: end a server."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import RequestTimeout, ServerUnavailable
from .. import arguments, backends
from ..console import out, say
from ..waiting import within

if TYPE_CHECKING:
    from ...backend.shared_server import ServerEntry

HASTE = 10.0  # seconds to end at once, before it is killed
_AGAIN = 0.5  # seconds until it is told again


def stop(
    now: Annotated[bool, typer.Option("--now", help="Do not let answers end first.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for its end.")] = 120.0,
    url: arguments.Url = None,
) -> None:
    """End a server.

    It takes nothing new, and answers may end first, for as long as its setting
    `drain` says.

    [dim]mlx-guarded stop
    mlx-guarded stop --now
    mlx-guarded stop --url http://127.0.0.1:8080[/dim]
    """
    from ...backend import shared_server
    from ...backend.default_backend import named_server

    named = url or named_server()
    if named is not None:
        _stop_at(named, now=now, timeout=timeout)
        return
    entry = shared_server.running()
    if entry is None:
        say(out(), "No shared server of yours runs.")
        return
    _stop(entry, now=now, timeout=timeout)
    say(out(), f"Process {entry.pid} has ended.")


def _stop(entry: ServerEntry, *, now: bool, timeout: float) -> None:
    """By a signal: so it ends even if it answers nobody any more."""
    from ...backend import shared_server

    def ended() -> bool:
        there = shared_server.running()
        return there is None or (there.pid, there.started) != (entry.pid, entry.started)

    if now or entry.state != "ending":  # a second one would not let answers end
        _signal(entry, signal.SIGTERM)
    end = time.monotonic() + HASTE
    while now and not within(_AGAIN, ended):  # it ends at once when it is told a second time
        _signal(entry, signal.SIGTERM if time.monotonic() < end else signal.SIGKILL)
    if not within(timeout, ended):
        raise _still_runs(f"process {entry.pid}", timeout)


def _stop_at(url: str, *, now: bool, timeout: float) -> None:
    from ...backend import shared_server

    with backends.open_server(url) as backend:
        entry = backend.server_entry()
        here = shared_server.is_here(entry)
        backend.end_server(now=now)
    if not here:  # whether its process has ended cannot be known from here
        if not within(timeout, lambda: not _takes_calls(url, entry)):
            raise _still_runs(f"the server at {url}", timeout)
        say(out(), f"The server at {url} takes nothing new, and ends when its answers have ended.")
        return
    if not within(timeout, lambda: not shared_server.is_here(entry)):
        raise _still_runs(f"the server at {url} (process {entry.pid})", timeout)
    say(out(), f"The server at {url} (process {entry.pid}) has ended.")


def _takes_calls(url: str, entry: ServerEntry) -> bool:
    """Whether this server, and not one that came after it, does."""
    try:
        with backends.open_server(url) as backend:
            return backend.server_entry().started == entry.started
    except ServerUnavailable:
        return False


def _still_runs(what: str, timeout: float) -> RequestTimeout:
    return RequestTimeout(
        f"{what} has not ended within {timeout:g} s.",
        hint="It ends by itself when its answers have ended; `mlx-guarded stop --now` does not "
        "wait for them.",
    )


def _signal(entry: ServerEntry, number: signal.Signals) -> None:
    try:
        os.kill(entry.pid, number)
    except ProcessLookupError:
        pass
