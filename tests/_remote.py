"""Backends behind a server: what `make_backend` makes for the isolation "remote".

The server runs in a thread of the test's process, with a backend whose engine is a thread, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend.dispatcher import Dispatcher
from mlx_guarded_llm.backend.remote.backend import RemoteBackend
from mlx_guarded_llm.record import Record
from mlx_guarded_llm.server import Settings, create_app
from mlx_guarded_llm.server.running import Server, listen
from mlx_guarded_llm.server.settings import Limits

T = TypeVar("T")
LIMITS = Limits(body_bytes=2**28)  # tests reach the bounds of the backend itself


class ServedBackend(RemoteBackend):
    """A remote backend whose server's own backend is at hand.

    What a server offers nobody is that backend's: tests hold up the MLX thread with `run`, wait
    for events with `record`, and look at `_dispatcher`.
    """

    def __init__(self, url: str, server: Backend) -> None:
        super().__init__(url, timeout=server.timeout)
        self.server = server

    def run(self, fn: Callable[[], T], **options: Any) -> T:
        """See `BaseBackend.run`."""
        self._check_open()
        return self.server.run(fn, **options)

    async def arun(self, fn: Callable[[], T], **options: Any) -> T:
        """See `BaseBackend.arun`."""
        return await self.server.arun(fn, **options)

    @property
    def record(self) -> Record:
        return self.server.record

    @property
    def _dispatcher(self) -> Dispatcher:
        return self.server._dispatcher


@contextmanager
def serving(backend: Backend) -> Iterator[str]:
    """Serve a backend on loopback, and stop at the end. Gives the address."""
    chosen = Settings(port=0, any_model=True, drain=1, limits=LIMITS)
    with listen(chosen) as sock:
        begun = threading.Event()
        server = Server(create_app(backend, chosen), begun.set)
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            assert begun.wait(60)
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
