"""How many replicas there should be."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from mlx_guarded_ray.scaling import QueueAge, wanted_replicas


def test_an_old_queue_calls_for_more_and_no_work_for_fewer() -> None:
    assert wanted_replicas(2, [15.0, 0.0], [3, 1], 10.0) == 3
    assert wanted_replicas(2, [500.0, 0.0], [3, 1], 10.0) == 4
    assert wanted_replicas(3, [500.0, 0.0], [3, 1], 10.0) == 3  # one still starts
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
    def reports(*values: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(timestamp=float(n), value=v) for n, v in enumerate(values)]

    metrics = {"oldest_waiting": {"a": reports(0.0, 30.0)}, "requests": {"a": reports(0.0, 2.0)}}
    context = SimpleNamespace(raw_metrics=metrics, target_num_replicas=1)
    assert QueueAge(10.0)(context) == (2, {})
    context.target_num_replicas = 2
    assert QueueAge(10.0)(context) == (2, {})
    context.raw_metrics = {name: {"a": reports(30.0, 0.0)} for name in metrics}
    assert QueueAge(10.0)(context) == (1, {})
    context.raw_metrics, context.target_num_replicas = None, 1
    assert QueueAge(10.0)(context) == (1, {})
