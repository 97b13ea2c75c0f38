"""A model over several ranks, as an entry of a server's configuration."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import MakeModel
from tests.server._wait import until
from tests.server.test_command import Start, environment, start, where

pytestmark = pytest.mark.slow  # a server, its engine and another rank are started
__all__ = ["environment", "start"]  # fixtures


def test_an_entry_with_hosts_is_served_and_nothing_outlives_the_server(
    start: Start, tiny: MakeModel, tmp_path: Path
) -> None:
    folder = tiny(layers=3)
    config = tmp_path / "server.toml"
    config.write_text(
        f'[models.alone]\nmodel = "{folder}"\n'
        f'[models.spread]\nmodel = "{folder}"\nhosts = ["127.0.0.1", "127.0.0.1"]\n'
    )
    server = start("--config", str(config))
    url = where(server)

    def ask(model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "seed": 1}
        return httpx.post(f"{url}/v1/chat/completions", json=body | {"max_tokens": 20}, timeout=100)

    alone, spread = (ask(model).json()["choices"][0]["message"] for model in ("alone", "spread"))
    assert alone["content"] == spread["content"] != ""
    refused = ask("alone[hosts=local:2]")
    assert refused.status_code == 404  # what a client says starts nothing anywhere
    processes = psutil.Process(server.pid).children(recursive=True)
    assert len(processes) == 2  # the engine, which is rank 0, and rank 1
    server.kill()
    server.wait(60)
    until(lambda: not any(process.is_running() for process in processes))
