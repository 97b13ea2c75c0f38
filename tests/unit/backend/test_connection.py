"""The connection of a remote backend to its server."""

from __future__ import annotations

import gc
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_guarded_llm.backend.remote.connection import Connection
from mlx_guarded_llm.errors import BackendClosed

pytest.importorskip("aiohttp")


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "http://{}:{}".format(*server.getsockname())


def ask(connection: Connection, ends: queue.Queue[Any], begin: threading.Barrier) -> None:
    begin.wait(60)
    for _ in range(5):
        drop = connection.send("models", {}, ends.put)
    drop()


@pytest.mark.parametrize("wait", [True, False])
def test_calls_that_begin_while_it_closes_end(
    silent: str, wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        connection = Connection(silent, None)
        ends: queue.Queue[Any] = queue.Queue()
        begin = threading.Barrier(5)
        threads = [threading.Thread(target=ask, args=(connection, ends, begin)) for _ in range(4)]
        for thread in threads:
            thread.start()
        begin.wait(60)
        connection.close(wait=wait)
        for thread in threads:
            thread.join(60)
        for _ in range(4 * 5):
            assert isinstance(ends.get(timeout=60), BackendClosed)
        connection._thread.join(60)
        assert not connection._thread.is_alive()
    gc.collect()  # a coroutine that was never awaited would be told
    assert not caplog.records
