"""What replicas say, in one."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlx_guarded_ray.gathering import Gathered, News
from mlx_guarded_ray.names import ClusterNames

from mlx_guarded_llm.models import Catalog, Progress
from mlx_guarded_llm.models.aliases import Alias
from mlx_guarded_llm.record import Event, Record


class Cluster:
    """The progress that is told, and the models that are said to be resident."""

    def __init__(self, folder: Path) -> None:
        alias = Alias(model=str(folder))
        self.catalog = Catalog(aliases={"m": alias, "same": alias}, cache_dir=folder / "cache")
        self.told: list[Progress] = []
        self.resident: set[str] = set()
        self.record = Record()
        names = ClusterNames(self.catalog)
        self.gathered = Gathered(self.record, names, self.resident.__contains__, self.told.append)

    def add(self, **stages: Progress) -> list[Progress]:
        """What is told when each replica says that it is so far."""
        del self.told[:]
        self.gathered.add([News(name, [], 0, 0.0, [one]) for name, one in stages.items()])
        return self.told


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def load(done: int, *, over: bool = False, model: str = "m") -> Progress:
    return Progress("load", done, 100, model=model, over=over)


def test_progress_is_told_once(cluster: Cluster) -> None:
    assert cluster.add(r1=load(10)) == [load(10)]
    assert cluster.add(r1=load(10)) == []
    assert cluster.add(r1=load(100, over=True)) == [load(100, over=True)]
    assert cluster.add(r1=load(100, over=True)) == []
    assert cluster.add() == []


def test_a_load_whose_replica_is_gone_is_over(cluster: Cluster) -> None:
    cluster.add(r1=load(10))
    assert cluster.add() == [load(10, over=True)]
    assert cluster.add() == []


def test_the_furthest_of_several_loads_counts(cluster: Cluster) -> None:
    assert cluster.add(r1=load(70, model="same"), r2=load(10, model="same")) == [
        load(70, model="same")
    ]
    assert cluster.add(r1=load(70, model="same"), r2=load(50)) == []


def test_a_model_that_a_replica_has_is_not_being_loaded(cluster: Cluster) -> None:
    cluster.resident.add(cluster.catalog.resolve("m").identity)
    assert cluster.add(r2=load(10)) == []
    assert cluster.add(r2=load(20), r3=load(30)) == []


def test_events_come_in_their_order_by_the_clock_of_here(cluster: Cluster) -> None:
    def event(time: float, model: str) -> Event:
        return Event(kind="load.started", time=time, model=model, job_id="load-1")

    late = News("r1", [event(100.0, "a"), event(104.0, "c")], 2, 105.0)
    early = News("r2", [event(7.0, "b")], 5, 10.0)
    cluster.gathered.add([late, early])
    events = cluster.record.events()
    assert [one.model for one in events] == ["a", "b", "c"]
    assert [one.job_id for one in events] == ["r1/load-1", "r2/load-1", "r1/load-1"]
    assert [one.details["replica"] for one in events] == ["r1", "r2", "r1"]
    assert events[2].time - events[0].time == pytest.approx(4.0)
    assert cluster.gathered.positions == {"r1": 2, "r2": 5}
