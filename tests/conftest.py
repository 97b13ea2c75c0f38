"""Fixtures of the backend's contract: small models and backends that are closed again.

With MLX_GUARDED_TEST_REMOTE=1 the backends of the contract are those of a server, and with
MLX_GUARDED_TEST_REMOTE=ray those of two replicas on Ray Serve.

The contract tests (`engine/test_backend_*.py`, except `_faults`) see the public API only, so the
same tests hold for every place where an engine may live. Tests of what is above a backend,
and those that look inside of the engine, name one place by a fixture `isolation` of their own.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest

from mlx_guarded_llm import Backend, Catalog
from mlx_guarded_llm.backend import default_backend, runtime_folder
from mlx_guarded_llm.record import overlaps
from mlx_guarded_llm.testing.tiny import (
    make_scripted_model,
    make_tiny_embedder,
    make_tiny_model,
)
from tests._pool import pooled
from tests._remote import ServedBackend, serving

ISOLATIONS = ["process", "thread"]

MakeBackend = Callable[..., Backend]
MakeModel = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def compiled_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where Python is told to keep no bytecode, each process would compile all that it imports.

    That is more than half of a worker's start; so the bytecode goes to pytest's cache.
    """
    with pytest.MonkeyPatch.context() as patch:
        cache = getattr(request.config, "cache", None)  # none with `-p no:cacheprovider`
        if sys.dont_write_bytecode and cache is not None:
            patch.setenv("PYTHONPYCACHEPREFIX", str(cache.mkdir("pycache")))
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell has what it starts in the background ignore Ctrl-C, and what that starts as well."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_server_of_ours() -> Iterator[None]:
    """No test, and no process that it starts, finds the shared server of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="run-") as folder:
        patch.setenv(runtime_folder.VARIABLE, folder)
        patch.delenv(default_backend.URL, raising=False)
        yield


REMOTE = {"1": ["remote"], "ray": ["ray"]}


@pytest.fixture(params=REMOTE.get(os.environ.get("MLX_GUARDED_TEST_REMOTE", ""), ISOLATIONS))
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own_worker() -> bool:
    """Whether each backend of a test starts a worker of its own; see `_pool`."""
    return False


@pytest.fixture(scope="module")
def frozen_heap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is imported by now is no garbage: the search at each unload need not look at it.

    A worker does the same for itself.
    """
    catalog = Catalog(cache_dir=tmp_path_factory.mktemp("cache"))
    with Backend(isolation="thread", catalog=catalog, offline=True) as backend:
        backend.run(_import_all)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _import_all() -> None:
    import mlx_lm.generate  # noqa: F401


@pytest.fixture
def make_backend(
    isolation: str,
    own_worker: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MakeBackend]:
    """Make backends; at the end each is closed and must have kept the rule."""
    made: list[Backend] = []
    ends = ExitStack()
    if isolation == "ray":
        replicas = request.getfixturevalue("ray_replicas")
        replicas.check(request.node.nodeid)

        def replicated(aliases: Path | None = None, **options: Any) -> Backend:
            given = {"prefix_cache": "64MiB", "timeout": 60.0, **options}
            backend = replicas.backend(aliases, tmp_path / "cache", **given)
            return cast(Backend, ends.enter_context(backend))

        with ends:
            yield replicated
        return
    if isolation != "process":
        request.getfixturevalue("frozen_heap")
    if isolation == "process" and not own_worker:
        monkeypatch.setattr("mlx_guarded_llm.backend.backend.launcher", pooled)

    def make(aliases: Path | None = None, **options: Any) -> Backend:
        defaults: dict[str, Any] = {
            "isolation": "thread" if isolation == "remote" else isolation,
            "catalog": Catalog(aliases_file=aliases, cache_dir=tmp_path / "cache"),
            "offline": True,
            "memory_budget": "1GiB",
            "prefix_cache": "64MiB",
            "timeout": 60.0,  # seconds; nothing here takes so long unless it hangs
        }
        backend = Backend(**(defaults | options))
        made.append(backend)
        if isolation == "remote":
            served = ServedBackend(ends.enter_context(serving(backend)), backend)
            ends.callback(served.close)
            return cast(Backend, served)
        return backend

    yield make
    ends.close()
    for backend in made:
        assert backend.close(), "the engine did not stop"
        assert overlaps(backend.timeline()) == []


@pytest.fixture(scope="session")
def ray_replicas() -> Iterator[Any]:
    """What makes backends of two replicas."""
    from tests.ray._contract import replicas

    with replicas() as made:
        yield made


@pytest.fixture
def backend(make_backend: MakeBackend) -> Backend:
    """One with the options of `make_backend`."""
    return make_backend()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """`make_tiny_model`, made once for each set of options. Returns its folder."""
    return _made_once(tmp_path_factory, "tiny", make_tiny_model)


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """`make_scripted_model`, made once for each text and options. Returns its folder."""
    return _made_once(tmp_path_factory, "scripted", make_scripted_model)


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """`make_tiny_embedder`, made once for each set of options. Returns its folder."""
    return _made_once(tmp_path_factory, "embedder", make_tiny_embedder)


@pytest.fixture
def aliases(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of aliases: `aliases(a={"model": folder, "kv_bits": 8})`."""

    def write(**tables: dict[str, Any]) -> Path:
        lines = []
        for name, table in tables.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        file = tmp_path / "models.toml"
        file.write_text("\n".join(lines))
        return file

    return write


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[..., Path]) -> MakeModel:
    made: dict[str, str] = {}

    def folder(*arguments: Any, **options: Any) -> str:
        key = repr((arguments, sorted(options.items())))
        if key not in made:
            made[key] = str(make(factory.mktemp(name), *arguments, **options))
        return made[key]

    return folder
