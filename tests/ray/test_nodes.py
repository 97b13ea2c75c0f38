"""A node that dies, or says nothing any more, in the middle of answers.

The web application is at the first node, where there is no memory for a replica. Each of two
others has one.
"""

from __future__ import annotations

from typing import Any

import pytest
from mlx_guarded_ray.testing import LocalCluster, Node

from mlx_guarded_llm import Backend
from mlx_guarded_llm.server import Settings

from .conftest import Deployed, assert_went_on, deploy, read_all

pytestmark = [pytest.mark.soak, pytest.mark.timeout(500)]

MEMORY = 2**30  # bytes, of a node and of a replica
STREAMS = 4
TOKENS = 200


@pytest.fixture(scope="module")
def nodes(cluster: LocalCluster) -> dict[str, Node]:
    """By id."""
    return {node.id: node for node in (_node(cluster), _node(cluster))}


@pytest.fixture(scope="module")
def deployed(cluster: LocalCluster, settings: Settings, nodes: dict[str, Node]) -> Deployed:
    """A replica at each node."""
    deployed = deploy(cluster, settings, replicas=2, cpus=0, memory=MEMORY)
    assert {*deployed.nodes().values()} == {*nodes}
    return deployed


def _node(cluster: LocalCluster) -> Node:
    return cluster.add_node(cpus=0, memory=MEMORY)


@pytest.mark.parametrize("end", ["kill", "freeze"])
def test_no_stream_is_lost_when_its_node_ends(
    cluster: LocalCluster, deployed: Deployed, nodes: dict[str, Node], end: str
) -> None:
    deployed.wait_for_replicas(2)
    with Backend.connect(deployed.url) as backend:
        prompts = [f"number {n}" for n in range(STREAMS)]
        options: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0}
        whole = [backend.generate("slow", prompt, **options) for prompt in prompts]
        (home,) = {result.guard.replica for result in whole}
        homes = deployed.nodes()
        node = nodes.pop(homes[home])
        answers = read_all(backend, "slow", prompts, getattr(node, end), **options)
        for chunks, result in zip(answers, whole, strict=True):
            assert_went_on(chunks, result)
        assert backend.generate("slow", "and now", max_tokens=4).guard.replica != home
        assert "slow" in {info.name for info in backend.models()}
        assert not backend.health(timeout=30.0).running
        began = {e.details["replica"] for e in backend.events() if e.kind == "request.started"}
        assert began >= {*homes}
    node.kill()
    other = _node(cluster)  # where Ray Serve starts another replica
    nodes[other.id] = other
