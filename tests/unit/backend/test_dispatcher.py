"""The dispatcher without an engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mlx_guarded_llm import Backend, Catalog, Progress
from mlx_guarded_llm.engine.protocol import Moved


def test_progress_of_a_request_nobody_waits_for_is_dropped(tmp_path: Path) -> None:
    with Backend(catalog=Catalog(cache_dir=tmp_path)) as backend:
        dispatcher = backend._dispatcher
        for engine_id in ("ticket-0", None):
            report = Moved("phi3", engine_id, Progress("load", 1, 2))
            dispatcher.call(partial(dispatcher._take, report)).wait(60, give_up=lambda: None)
        assert list(dispatcher.listeners.stages) == [("phi3", "")]
