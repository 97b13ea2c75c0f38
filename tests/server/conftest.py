"""A real uvicorn on loopback, in a thread, with tiny models behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.server import Settings, create_app
from mlx_guarded_llm.server.opening import make_catalog
from mlx_guarded_llm.server.running import Server, listen
from tests.conftest import MakeBackend, MakeModel

ANSWER = "The capital of France is Paris, and no other."


@pytest.fixture
def isolation() -> str:
    """A server does not know where its backend's engine lives; here no child is needed."""
    return "thread"


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: where.
        client: with that as its base.
    """

    url: str
    backend: Backend
    client: httpx.Client
    server: Server


Serve = Callable[..., Running]


@contextmanager
def running(backend: Backend, settings: Settings) -> Iterator[Running]:
    """A server with these settings in front of a backend, until the end of the block."""
    app = create_app(backend, settings)
    begun = threading.Event()
    server = Server(app, begun.set)
    with listen(settings) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        assert begun.wait(60)
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Running(url, backend, client, server)
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def serve(make_backend: MakeBackend, tmp_path: Path) -> Iterator[Serve]:
    """Start servers: `serve(models={"paris": folder}, heartbeat=0.05)`."""
    with ExitStack() as ends:

        def start(*, options: dict[str, Any] | None = None, **given: Any) -> Running:
            settings = settings_of(**given)
            catalog = make_catalog(settings, cache_dir=tmp_path / "cache")
            backend = make_backend(catalog=catalog, **(options or {}))
            return ends.enter_context(running(backend, settings))

        yield start


def settings_of(*, models: dict[str, Any], **given: Any) -> Settings:
    """Settings of a server whose models are given as tables, or as their folders alone."""
    tables = {
        name: {"model": entry} if isinstance(entry, str) else entry
        for name, entry in models.items()
    }
    return Settings.model_validate({"port": 0, "drain": 5, "models": tables, **given})


@pytest.fixture
def tiktoken_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encodings that LlamaIndex ships, where tiktoken looks for those that it has fetched."""
    spec = find_spec("llama_index.core")
    assert spec is not None and spec.submodule_search_locations
    (folder,) = spec.submodule_search_locations
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(folder, "_static", "tiktoken_cache")))


@pytest.fixture
def paris(serve: Serve, scripted: MakeModel) -> Running:
    """A server of one model, which always answers `ANSWER`."""
    return serve(models={"paris": scripted(ANSWER)})
