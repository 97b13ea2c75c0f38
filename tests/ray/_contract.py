"""Backends of the contract at two replicas: what `make_backend` makes for the isolation "ray".

Ray takes long to start, so there is one cluster; for each backend its replicas make new ones.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mlx_guarded_ray.gathering import News
from mlx_guarded_ray.names import ClusterNames
from mlx_guarded_ray.replica import Replica
from mlx_guarded_ray.testing import local_cluster

from mlx_guarded_llm import Catalog
from mlx_guarded_llm.backend.remote.backend import RemoteBackend
from mlx_guarded_llm.record import Event, overlaps
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.settings import GuardSection
from tests._remote import LIMITS

with warnings.catch_warnings():  # Ray's own code has some at its import
    warnings.simplefilter("ignore")
    from mlx_guarded_ray import Cluster
    from mlx_guarded_ray.application import INGRESS, Ingress
    from ray.serve import get_deployment_handle

STARTS = ("engine.started", "run.queued", "run.started", "run.finished")
SKIPPED = {  # why: the names of tests, or of classes of them
    "it is about two models under one guard: here another replica takes the other model": (
        "TestLoadBesideAGeneration",
        "TestFairness",
        "test_of_a_load_behind_a_generation",
        "test_the_only_one_who_wanted_a_load",
        "test_a_load_that_nobody_waits_for",
        "TestClose::test_everybody_is_told",
        "test_a_load_is_deferred_and_then_pauses_it",
        "test_its_own_load_is_deferred_by_a_generation",
        "test_the_least_recently_used_leaves",
        "test_a_busy_model_is_not_evicted",
        "test_the_answer_is_the_same_after_eviction",
        "test_a_pinned_model_is_never_evicted",
        "TestFailedLoad::test_all_who_wait_are_told_and_the_next_works",
    ),
    "a replica's engine works before its first use": (
        "test_from_before_its_first_use_to_its_end",
        "TestClose::test_unused",
    ),
    "it fills one queue, and the other replica has another": (
        "test_in_order_of_arrival",
        "test_what_waits_has_an_age",
    ),
    "the budgets of both replicas are added": ("test_a_small_budget_has_a_small_prefix_cache",),
    "two replicas would count each other, so they count no other programs here": (
        "test_what_another_program_holds",
        "test_idle_models_leave_before_another_program_is_blamed",
    ),
    "a replica's times are told by another clock, to a few milliseconds": ("test_keep_alive",),
    "it changes a bound of the backend's module, which is in another process": (
        "test_characters_under_way_are_bounded",
    ),
}
PATIENCE = 60.0  # seconds for both replicas
SETTINGS = Settings(
    any_model=True,
    port=0,
    drain=1,
    limits=LIMITS,
    guard=GuardSection(isolation="thread", offline=True, count_others=False, memory_budget="1GiB"),
)


class Renewed(Replica):
    """A replica whose backend can be replaced. Its record goes on behind the one before."""

    before = 0  # events of the backends that were replaced

    async def news(self, positions: Mapping[str, int]) -> News:
        """See `Replica.news`."""
        behind = max(positions.get(self.name, 0) - self.before, 0)
        found = await super().news({self.name: behind})
        return found._replace(after=found.after + self.before)

    async def renew(self, aliases: Path | None, cache: Path, options: Mapping[str, Any]) -> int:
        """How often the backend before broke the rule."""
        self._warm.cancel()
        self.before += self._backend.record.since(0)[1]
        broken = len(overlaps(self._backend.timeline()))
        assert await self._backend.aclose(), "the engine did not stop"
        catalog = Catalog(aliases_file=aliases, cache_dir=cache)
        self._open(SETTINGS, catalog=catalog, **options)
        await asyncio.wait_for(self._started.wait(), PATIENCE)
        return broken


class RenewedIngress(Ingress):
    """A web application that can forget what names mean, and take other aliases."""

    def renew(self, aliases: Path | None, cache: Path) -> None:
        ClusterNames.__init__(self.backend._names, Catalog(aliases_file=aliases, cache_dir=cache))


class Replicated(RemoteBackend):
    """A backend of two replicas, of which no test sees the inside."""

    def __init__(self, url: str, *, timeout: float) -> None:
        super().__init__(url, timeout=timeout)
        self._earlier = len(super().events())

    def events(self) -> tuple[Event, ...]:
        """Those since it was made, without the start of the replicas' engines."""
        return tuple(e for e in super().events()[self._earlier :] if e.kind not in STARTS)

    def run(self, *_: Any, **__: Any) -> NoReturn:
        """See `BaseBackend.run`."""
        pytest.skip("it holds up the MLX thread, which is that of a replica here")

    arun = run

    @property
    def record(self) -> NoReturn:
        pytest.skip("it waits for events inside the backend, which is that of a replica here")

    _dispatcher = record


class Replicas:
    """Makes backends, one after the other, at the same two replicas."""

    def __init__(self, url: str, handle: Any, ingress: Any) -> None:
        self._url, self._handle, self._ingress = url, handle, ingress

    def check(self, test: str) -> None:
        """Skip a test of what cannot hold at two replicas."""
        for why, names in SKIPPED.items():
            if any(name in test for name in names):
                pytest.skip(why)

    @contextmanager
    def backend(self, aliases: Path | None, cache: Path, **options: Any) -> Iterator[Replicated]:
        """A new backend at each replica, behind one address."""
        self._renew(aliases, cache, options)
        with Replicated(self._url, timeout=options.get("timeout", 60.0)) as backend:
            yield backend
        self._renew(None, cache, {})

    def _renew(self, aliases: Path | None, cache: Path, options: Mapping[str, Any]) -> None:
        renewed = self._handle.broadcast("renew", aliases, cache, dict(options))
        known = self._ingress.renew.remote(aliases, cache)
        with ThreadPoolExecutor(1) as apart:  # from the event loop of a test
            assert apart.submit(renewed.results, timeout_s=PATIENCE).result() == [0, 0]
            apart.submit(known.result, timeout_s=PATIENCE).result()


@contextmanager
def replicas() -> Iterator[Replicas]:
    """Two of them on this machine."""
    with local_cluster() as cluster:
        handle = cluster.deploy(
            SETTINGS, Cluster(replicas=2, cpus=0.5), replica=Renewed, ingress=RenewedIngress
        )
        yield Replicas(cluster.url, handle, get_deployment_handle(INGRESS, handle.app_name))
