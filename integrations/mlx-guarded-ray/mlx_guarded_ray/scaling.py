"""How many replicas there should be: more when the queue is old, fewer when there is no work."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

FASTEST = 2.0  # of so many times as many replicas at once


def wanted_replicas(
    current: int, oldest: Iterable[float], requests: Iterable[float], queue_age: float
) -> int:
    """How many replicas are wanted.

    Args:
        current: how many there are.
        oldest: seconds that the oldest request of each replica has waited.
        requests: of each replica, running and waiting.
        queue_age: seconds that the oldest request may wait.

    Returns:
        As many more as the age calls for, at most `FASTEST` times as many; one fewer where a
        replica has nothing to do and no request waits longer than a quarter of that; else as
        many as there are.
    """
    age = max(oldest, default=0.0)
    if age > queue_age:
        return ceil(max(current, 1) * min(age / queue_age, FASTEST))
    counts = list(requests)
    if current > 1 and age <= queue_age / 4 and 0 in counts:
        return current - 1
    return current


class QueueAge:
    """Ray Serve's autoscaling policy; its bounds and delays are those of the deployment.

    Args:
        queue_age: as of `wanted_replicas`.
    """

    def __init__(self, queue_age: float) -> None:
        self._queue_age = queue_age

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """What Ray Serve asks at each step, with its `AutoscalingContext`."""
        metrics = ctx.aggregated_metrics or {}
        oldest = metrics.get("oldest_waiting", {}).values()
        requests = metrics.get("requests", {}).values()
        return wanted_replicas(ctx.target_num_replicas, oldest, requests, self._queue_age), {}
