"""The simulated deployment: the guard and the router as they are, and nothing lost."""

from __future__ import annotations

import pytest

from benchmarks.cluster import POLICIES, Policy, World, simulate, traffic

GB = 10**9
SMALL = World(replicas=6, models=30, hours=0.1, rate=2.0, sizes=(9 * GB, 18 * GB, 40 * GB))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_starts_and_what_was_loaded_is_there_or_was_evicted(policy: Policy) -> None:
    arrivals = traffic(SMALL)
    outcome = simulate(SMALL, policy, arrivals)
    assert len(outcome.waits) == len(arrivals) > 400
    assert min(outcome.waits) >= 0
    assert outcome.loads - SMALL.replicas * SMALL.budget / min(SMALL.sizes) <= outcome.evictions
    assert outcome.evictions <= outcome.loads


def test_the_router_loads_less_and_nobody_waits_as_long_as_by_lot() -> None:
    arrivals = traffic(SMALL)
    guarded = simulate(SMALL, "guarded", arrivals)
    by_lot = simulate(SMALL, "power of two", arrivals)
    assert guarded.loads < by_lot.loads
    assert max(guarded.waits) < max(by_lot.waits)
    assert guarded.disturbing == 0 < by_lot.disturbing
