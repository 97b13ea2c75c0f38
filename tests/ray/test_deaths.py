"""A replica, of models or of the web application, that dies in the middle of answers."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
from mlx_guarded_ray.testing import LocalCluster

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend import BaseBackend
from mlx_guarded_llm.server import Settings

from .conftest import Deployed, assert_went_on, deploy, read_all

pytestmark = pytest.mark.timeout(300)

STREAMS = 8
TOKENS = 200


def test_no_stream_is_lost_when_its_replica_is_killed(
    backend: BaseBackend, deployed: Deployed
) -> None:
    prompts = [f"number {n}" for n in range(STREAMS)]
    options: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0}
    whole = [backend.generate("slow", prompt, **options) for prompt in prompts]
    home = whole[-1].guard.replica
    answers = read_all(backend, "slow", prompts, lambda: deployed.kill(home), **options)
    for chunks, result in zip(answers, whole, strict=True):
        assert_went_on(chunks, result)


def test_a_backends_streams_go_on_when_their_ingress_is_killed(
    cluster: LocalCluster, settings: Settings
) -> None:
    deployed = deploy(cluster, settings, replicas=1, cpus=0.5, ingresses=2)
    with Backend.connect(deployed.url) as backend:
        prompts = [f"number {n}" for n in range(STREAMS)]
        options: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0}
        whole = [backend.generate("slow", prompt, **options).text for prompt in prompts]
        answers = read_all(backend, "slow", prompts, _ingresses()[0].kill, **options)
    assert ["".join(chunk.text for chunk in chunks) for chunks in answers] == whole
    guards = [chunks[-1].guard for chunks in answers]
    assert any(guard is not None and guard.resumed for guard in guards)


def _ingresses() -> list[psutil.Process]:
    """The processes of the web application; Ray names them so."""
    name = "ray::ServeReplica:mlx-guarded:Ingress"
    below = psutil.Process().children(recursive=True)
    found = [process for process in below if "".join(process.cmdline()).startswith(name)]
    assert len(found) == 2
    return found
