"""The backend that everybody shares who brings none."""

from __future__ import annotations

import os
import threading
from typing import Any

from ..errors import InvalidRequest
from .backend import Backend

_lock = threading.Lock()
_shared: Backend | None = None
_owner = 0


def default_backend(**options: Any) -> Backend:
    """The backend shared by this process, made on first use.

    The adapters use it unless they are given one. Call it first, with options, to choose
    how it works. One that was closed is followed by a new one.

    Args:
        **options: those of `Backend`. In a notebook `on_progress` draws progress bars,
            unless it is given.

    Raises:
        InvalidRequest: there are options, but the backend has been made already.
    """
    global _shared, _owner
    from ..display import ProgressBars, in_notebook

    with _lock:
        usable = _shared is not None and not _shared.closed and _owner == os.getpid()
        if not usable:
            if in_notebook():
                options.setdefault("on_progress", ProgressBars())
            _shared, _owner = Backend(**options), os.getpid()
        elif options:
            raise InvalidRequest(
                f"the shared backend is running already and takes no {', '.join(options)}.",
                hint="Call default_backend(...) before its first use, or close() it.",
            )
        assert _shared is not None
        return _shared
