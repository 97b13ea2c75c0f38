"""What every call of a backend goes through before the dispatcher has it."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any

from ..errors import BackendClosed, InvalidRequest
from ..models import Catalog, ModelSpec, OnProgress
from ..models.spec import Task
from .calls import Put
from .dispatcher import Dispatcher
from .options import seconds
from .requests import Request

THREAD_PREFIX = "mlx-guarded-"
_ids = itertools.count(1)


class Asking:
    """The common part of `Backend`, which sets its attributes.

    Attributes:
        timeout: seconds a request may take in all, unless it says otherwise.
    """

    timeout: float
    _catalog: Catalog
    _dispatcher: Dispatcher
    _owner: int
    _closed: bool

    def cancel(self, request_id: str) -> None:
        """Stop a request at its next token, or before it starts. Never blocks.

        An answer that was running ends with finish reason "cancelled" and what it has;
        a request that was waiting, or for vectors, raises `RequestCancelled`. Unknown and
        ended ones are ignored.
        """
        self._dispatcher.post(lambda: self._dispatcher.cancel(request_id))

    def _common(
        self,
        put: Put,
        model: str,
        timeout: float | None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        *,
        task: Task | None = None,
    ) -> dict[str, Any]:
        """Check what every request has, and return the fields of `Request`."""
        self._check_open()
        now = time.monotonic()
        return {
            "id": request_id or new_id("request"),
            "name": model,
            "spec": self._resolve(model, task=task),
            "put": put,
            "submitted": now,
            "expires": now + self._timeout(timeout),
            "on_progress": on_progress,
        }

    def _post(self, request: Request) -> None:
        self._dispatcher.post(lambda: self._dispatcher.submit(request))

    def _resolve(self, model: str, **options: Any) -> ModelSpec:
        if not isinstance(model, str) or not model:
            raise InvalidRequest(f"model is {model!r}; it must be a name.")
        return self._catalog.resolve(model, **options)

    def _timeout(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else seconds("timeout", timeout)

    def _check_open(self) -> None:
        if inside():
            raise InvalidRequest(
                "the backend was called from one of its own threads, which would wait for itself.",
                hint="Call it from outside of backend.run(fn) and of progress callbacks.",
            )
        if self._owner != os.getpid():
            raise BackendClosed(
                "this backend belongs to the process this one was forked from.",
                hint="Make a backend in the child, started with the 'spawn' method.",
            )
        if self._closed:
            raise BackendClosed("the backend is closed.", hint="Make a new Backend().")


def inside() -> bool:
    """Whether this is a thread of the library, which must not wait for the others."""
    return threading.current_thread().name.startswith(THREAD_PREFIX)


def new_id(kind: str) -> str:
    """A name for a request or a job."""
    return f"{kind}-{next(_ids)}"
