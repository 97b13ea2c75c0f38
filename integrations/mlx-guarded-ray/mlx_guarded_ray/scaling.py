"""How many replicas there should be: more when the queue is old, fewer when there is no work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import Any

FASTEST = 2.0  # of so many times as many replicas at once


def wanted_replicas(
    current: int, oldest: Collection[float], requests: Collection[float], queue_age: float
) -> int:
    """How many replicas are wanted.

    Args:
        current: how many there are, or will be once those that start have started.
        oldest: seconds that the oldest request has waited, of each replica that reports.
        requests: running and waiting, of each of them.
        queue_age: seconds that the oldest request may wait.

    Returns:
        As many more as the age calls for, at most `FASTEST` times as many, once all report; one
        fewer where a replica has nothing to do and no request waits longer than a quarter of
        that; else as many as there are.
    """
    age = max(oldest, default=0.0)
    if age > queue_age and len(oldest) >= current:
        return ceil(max(current, 1) * min(age / queue_age, FASTEST))
    if current > 1 and age <= queue_age / 4 and 0 in requests:
        return current - 1
    return current


class QueueAge:
    """Ray Serve's autoscaling policy; its bounds and delays are those of the deployment.

    It takes the last report of each replica. Ray Serve's mean of half a minute would see a queue
    that grows old when it is twice as old.

    Args:
        queue_age: as of `wanted_replicas`.
    """

    def __init__(self, queue_age: float) -> None:
        self._queue_age = queue_age

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """What Ray Serve asks at each step, with its `AutoscalingContext`."""
        reports = ctx.raw_metrics or {}
        oldest, requests = (_last(reports.get(name, {})) for name in ("oldest_waiting", "requests"))
        return wanted_replicas(ctx.target_num_replicas, oldest, requests, self._queue_age), {}


def _last(reports: Mapping[Any, Sequence[Any]]) -> list[float]:
    return [of_one[-1].value for of_one in reports.values() if of_one]
