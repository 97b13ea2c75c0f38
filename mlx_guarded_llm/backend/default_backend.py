"""The backend of whoever brings none: one for the process."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest, ServerUnavailable
from ..json_values import shown
from ..logs import get_logger
from . import shared_server
from .backend import Backend
from .base import BaseBackend

URL = "MLX_GUARDED_URL"  # of the server that everybody without a backend asks
OFF = "off"  # there: nobody asks a server, not even the shared one
SCHEMES = ("http://", "https://", "unix://")

logger = get_logger("backend")

_lock = threading.Lock()
_shared: BaseBackend | None = None
_owner = 0
_connected: dict[tuple[int, str], BaseBackend] = {}  # by process and address


def as_backend(given: BaseBackend | str | None) -> BaseBackend:
    """The backend that is meant.

    Args:
        given: a backend, see `check_backend`; the address of a server, which all that name it in
            this process ask through one connection; or None for the one shared by the process.

    Raises:
        InvalidRequest: the text is no address.
        ServerUnavailable: no server answers at the address.
    """
    if given is None:
        return default_backend()
    if not isinstance(given, str):
        return given
    check_backend(given)
    key = (os.getpid(), given)
    with _lock:
        known = _connected.get(key)
        if known is None or known.closed:
            known = _connected[key] = Backend.connect(given)
        return known


def check_backend(given: Any, method: str = "generate") -> Any:
    """The same, if it is a backend with this method, or the address of a server.

    Raises:
        InvalidRequest: it is neither.
    """
    if isinstance(given, str):
        known = given.startswith(SCHEMES)
    else:
        known = hasattr(given, method) and not isinstance(given, type)
    if known:
        return given
    raise InvalidRequest(
        f"backend is {shown(given)}; it must be a Backend.",
        hint='The address of a server ("http://127.0.0.1:8080") is one, too.',
    )


def named_server() -> str | None:
    """The address in MLX_GUARDED_URL, if there is one."""
    said = os.environ.get(URL, "")
    return said if said not in ("", OFF) else None


def server_url(options: Mapping[str, Any], share: bool | None = None) -> str | None:
    """The address of the server that is asked by whoever names neither a backend nor an address.

    Args:
        options: of a backend that the caller wants; a server takes none.
        share: whether to ask one; None: if MLX_GUARDED_URL names one, or else if the shared server
            of this user listens and there are no options.

    Returns:
        None for a backend of this process.

    Raises:
        InvalidRequest: there are options, but a server is to be asked.
        ServerUnavailable: `share` is true and none is there.
    """
    if share is False:
        return None
    named = named_server()
    if named is not None:
        _check_none(options, f"{URL} is set, so the backend is a server's, and takes")
        return named
    if share is None and (os.environ.get(URL) == OFF or options):
        return None
    _check_none(options, "share is true, so the backend is a server's, and takes")
    found = shared_server.address()
    if share and found is None:
        raise ServerUnavailable(
            "no shared server of yours runs.", hint="`mlx-guarded serve --background` starts it."
        )
    return found


def default_backend(*, share: bool | None = None, **options: Any) -> BaseBackend:
    """The backend shared by this process, made on first use.

    The adapters use it unless they are given one. To choose its options, call this first, with
    them. After it was closed, a new one is made.

    It is a server's if the variable MLX_GUARDED_URL has the address of one, or if the shared
    server of this user runs, see `mlx-guarded serve --background`. Who gives options has a backend
    of this process, unless the variable is set.

    Args:
        share: True for the server's, False for one of this process, whatever is set and runs.
            `MLX_GUARDED_URL=off` says the latter for a whole program.
        **options: those of `Backend`. In a notebook `on_progress` draws progress bars,
            unless it is given.

    Raises:
        InvalidRequest: there are options, but the backend has been made already, or is a server's;
            or the server speaks another version of the protocol.
        ServerUnavailable: no server answers at MLX_GUARDED_URL, or `share` is true and none runs.
    """
    global _shared, _owner
    from ..display import ProgressBars, in_notebook

    with _lock:
        if _shared is not None and not _shared.closed and _owner == os.getpid():
            ours = isinstance(_shared, Backend)
            what = "running already" if ours else f"a server's (see {URL})"
            _check_none(options, f"the shared backend is {what}, and takes")
            if share is ours:
                _check_none({"share": share}, f"the shared backend is {what}, and takes")
            return _shared
        url = server_url(options, share)
        if url is not None:
            _shared = Backend.connect(url)
            logger.info("the shared backend is that of the server at %s", url)
        else:
            if in_notebook():
                options.setdefault("on_progress", ProgressBars())
            _shared = Backend(**options)
        _owner = os.getpid()
        return _shared


def _check_none(options: Mapping[str, Any], why: str) -> None:
    if options:
        raise InvalidRequest(
            f"{why} no {', '.join(options)}.",
            hint="Call default_backend(...) before its first use, or close() it; a server is told "
            "when it is started. MLX_GUARDED_URL=off has a backend of this process.",
        )
