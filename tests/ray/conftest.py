"""Two replicas on this machine, for all tests here: Ray takes long to start on two cores."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlx_guarded_ray.replica import Replica
from mlx_guarded_ray.testing import LocalCluster, local_cluster

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend import BaseBackend
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.settings import GuardSection, ModelEntry
from mlx_guarded_llm.testing.tiny import make_tiny_model

with warnings.catch_warnings():  # Ray's own code has some at its import
    warnings.simplefilter("ignore")
    from mlx_guarded_ray import Cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # Ray leaves sockets open


class Probe(Replica):
    """A replica that tells its process, so that tests can end it."""

    async def pid(self) -> tuple[str, int]:
        return self.name, os.getpid()


@dataclass(frozen=True)
class Deployed:
    """Two replicas, and the address in front of them."""

    url: str
    replicas: Any
    cluster: LocalCluster

    def pids(self) -> dict[str, int]:
        return dict(self.replicas.broadcast("pid").results(timeout_s=30))

    def kill(self, name: str) -> None:
        os.kill(self.pids()[name], signal.SIGKILL)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("models")
    models = {name: make_tiny_model(folder / name) for name in "abc"}
    models["slow"] = make_tiny_model(folder / "slow", hidden_size=256, layers=6)
    return Settings(
        models={name: ModelEntry(model=str(model)) for name, model in models.items()},
        any_model=True,
        port=0,
        drain=2.0,
        guard=GuardSection(offline=True, prefix_cache=0, count_others=False, memory_budget="1GiB"),
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as started:
        yield started


@pytest.fixture(scope="session")
def deployed(cluster: LocalCluster, settings: Settings) -> Deployed:
    replicas = cluster.deploy(settings, Cluster(replicas=2, cpus=0.5), replica=Probe)
    return Deployed(cluster.url, replicas, cluster)


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
