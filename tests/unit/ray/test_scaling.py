"""How many replicas there should be."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from mlx_guarded_ray.scaling import QueueAge, wanted_replicas


def test_an_old_queue_calls_for_more_and_no_work_for_fewer() -> None:
    assert wanted_replicas(2, [15.0, 0.0], [3, 1], 10.0) == 3
    assert wanted_replicas(2, [500.0, 0.0], [3, 1], 10.0) == 4
    assert wanted_replicas(2, [5.0, 0.0], [3, 0], 10.0) == 2
    assert wanted_replicas(2, [0.0, 0.0], [3, 0], 10.0) == 1
    assert wanted_replicas(1, [0.0], [0], 10.0) == 1


@given(st.integers(1, 100), st.lists(st.floats(0, 1e6)), st.floats(0.1, 100))
def test_it_grows_in_bounds_and_shrinks_by_one(
    current: int, oldest: list[float], queue_age: float
) -> None:
    wanted = wanted_replicas(current, oldest, [0.0] * len(oldest), queue_age)
    assert current - 1 <= wanted <= 2 * current
    assert wanted >= 1


def test_ray_serves_context_is_read() -> None:
    metrics = {"oldest_waiting": {"a": 30.0}, "requests": {"a": 2.0}}
    context = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=1)
    assert QueueAge(10.0)(context) == (2, {})
    context.aggregated_metrics = None
    assert QueueAge(10.0)(context) == (1, {})
