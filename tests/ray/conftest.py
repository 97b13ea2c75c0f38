"""A cluster on this machine, for all tests here: Ray takes long to start on two cores.

With MLX_GUARDED_TEST_GPUS=1 each replica has a GPU of its own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlx_guarded_ray.replica import Replica
from mlx_guarded_ray.testing import LocalCluster, local_cluster

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend import BaseBackend
from mlx_guarded_llm.results import Chunk, Result
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.settings import GuardSection, ModelEntry
from mlx_guarded_llm.testing.tiny import make_tiny_model

with warnings.catch_warnings():  # Ray's own code has some at its import
    warnings.simplefilter("ignore")
    import ray
    from mlx_guarded_ray import Cluster


MEMORY = 2**27  # bytes of the first node as Ray counts them: replicas that take some lie elsewhere


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # Ray leaves sockets open


GPUS = float(os.environ.get("MLX_GUARDED_TEST_GPUS", "0"))  # of a replica


class Probe(Replica):
    """A replica that tells its process, node and device, so that tests can end them."""

    async def place(self) -> tuple[str, int, str]:
        return self.name, os.getpid(), ray.get_runtime_context().get_node_id()

    async def device(self) -> tuple[str, dict[str, Any]]:
        return self.name, await self._backend.arun(_device, label="device")


def _device() -> dict[str, Any]:
    import mlx.core as mx

    return {**mx.device_info(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


@dataclass(frozen=True)
class Deployed:
    """Replicas, and the address in front of them."""

    url: str
    replicas: Any
    cluster: LocalCluster

    def pids(self) -> dict[str, int]:
        return {name: pid for name, pid, _ in self._places()}

    def nodes(self) -> dict[str, str]:
        """The node of each replica, by id."""
        return {name: node for name, _, node in self._places()}

    def _places(self) -> list[tuple[str, int, str]]:
        return list(self.replicas.broadcast("place").results(timeout_s=30))

    def wait_for_replicas(self, count: int) -> None:
        """Until so many are there. The test's own deadline ends it."""
        while len(self._places()) != count:
            time.sleep(0.5)

    def kill(self, name: str) -> None:
        os.kill(self.pids()[name], signal.SIGKILL)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("models")
    models = {name: make_tiny_model(folder / name) for name in "abc"}
    models["also-a"] = models["a"]
    models["slow"] = make_tiny_model(folder / "slow", hidden_size=256, layers=6)
    return Settings(
        models={name: ModelEntry(model=str(model)) for name, model in models.items()},
        any_model=True,
        port=0,
        drain=2.0,
        heartbeat=5.0,
        guard=GuardSection(offline=True, prefix_cache=0, count_others=False, memory_budget="1GiB"),
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(memory=MEMORY) as started:
        yield started


def deploy(cluster: LocalCluster, settings: Settings, **of_cluster: Any) -> Deployed:
    replicas = cluster.deploy(settings, Cluster(**of_cluster), replica=Probe)
    return Deployed(cluster.url, replicas, cluster)


@pytest.fixture(scope="module")
def deployed(cluster: LocalCluster, settings: Settings) -> Deployed:
    """Two replicas."""
    return deploy(cluster, settings, replicas=2, cpus=0.5, gpus=GPUS)


@pytest.fixture
def client(deployed: Deployed) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=deployed.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def backend(deployed: Deployed) -> Iterator[BaseBackend]:
    with Backend.connect(deployed.url) as backend:
        yield backend


def chat(model: str, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    return {"model": model, "messages": messages, "max_tokens": 8, **options}


def read_all(
    backend: BaseBackend,
    model: str,
    prompts: Sequence[str],
    strike: Callable[[], None],
    **options: Any,
) -> list[list[Chunk]]:
    """Stream answers to prompts, and strike when each has begun."""
    begun = threading.Barrier(len(prompts), action=strike)

    def read(prompt: str) -> list[Chunk]:
        chunks = []
        for number, chunk in enumerate(backend.stream(model, prompt, **options)):
            chunks.append(chunk)
            if number == 2:
                begun.wait(60)
        return chunks

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(read, prompts))


def assert_went_on(chunks: Sequence[Chunk], whole: Result) -> None:
    """An answer went on at another replica, behind its last token, and is the same."""
    assert "".join(chunk.text for chunk in chunks) == whole.text
    last = chunks[-1]
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.guard is not None
    assert last.guard.resumed
    assert last.guard.replica not in ("", whole.guard.replica)
