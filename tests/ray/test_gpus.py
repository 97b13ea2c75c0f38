"""One replica a GPU, where there are two: `MLX_GUARDED_TEST_GPUS=1`."""

from __future__ import annotations

import pytest

from mlx_guarded_llm.memory.budget import GPU_SHARE

from .conftest import GPUS, Deployed

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not GPUS, reason="MLX_GUARDED_TEST_GPUS is not set"),
]


def test_each_replica_computes_on_its_own(deployed: Deployed) -> None:
    devices = dict(deployed.replicas.broadcast("device").results(timeout_s=120))
    assert len(devices) == 2
    assert len({device["uuid"] for device in devices.values()}) == 2
    # Ray's choice reaches the engine's process, and it sees no other GPU.
    assert {device["visible"] for device in devices.values()} == {"0", "1"}
    assert all(device["total_memory"] * GPU_SHARE > 0 for device in devices.values())
