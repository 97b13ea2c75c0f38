"""What several replicas say, as one backend says it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from mlx_guarded_llm.backend import Health, ModelInfo
from mlx_guarded_llm.backend.request_status import RequestStatus
from mlx_guarded_llm.models import Progress
from mlx_guarded_llm.record import Event, Record

from .names import ClusterNames

T = TypeVar("T")
Found = Mapping[str, T]  # what each replica says, by its name

# The states of a model, what most of a cluster has of it first.
_STATES = ("resident", "unloading", "loading", "deferred", "queued", "quarantined")
_ENGINES = ("working", "idle", "starting", "failed", "closed")


class News(NamedTuple):
    """What has happened at a replica.

    Attributes:
        events: of its record, behind the position that was asked for.
        after: the position behind them.
        now: its `time.monotonic()`, by which they are timed.
        stages: downloads and loads under way, and those that have just ended.
    """

    replica: str
    events: Sequence[Event]
    after: int
    now: float
    stages: Sequence[Progress] = ()


def models(found: Found[Sequence[ModelInfo]]) -> list[ModelInfo]:
    """The models of all replicas, each once, whatever it is called there."""
    every: dict[str, dict[str, ModelInfo]] = {}
    for replica, infos in found.items():
        for info in infos:
            every.setdefault(info.identity, {})[replica] = info
    return sorted(map(_model, every.values()), key=attrgetter("name"))


def _model(replicas: Mapping[str, ModelInfo]) -> ModelInfo:
    infos = replicas.values()
    first = min(infos, key=lambda info: _STATES.index(info.state))
    idle = [info.idle_seconds for info in infos]
    return replace(
        first,
        name=min(info.name for info in infos),
        pinned=any(info.pinned for info in infos),
        active=sum(info.active for info in infos),
        waiting=sum(info.waiting for info in infos),
        memory_bytes=sum(info.memory_bytes for info in infos),
        crashes=sum(info.crashes for info in infos),
        cause=next((info.cause for info in infos if info.cause), ""),
        idle_seconds=None if None in idle else min(map(float, filter(None, idle)), default=0.0),
        replicas=replicas,
    )


def memory(found: Found[tuple[int, int]]) -> tuple[int, int]:
    """Bytes promised and the budgets, of all."""
    said = found.values()
    return sum(used for used, _ in said), sum(budget for _, budget in said)


def health(found: Found[Health]) -> Health:
    """It is as well as its best replica, and its queue as old as the oldest."""
    said = found.values()
    rooms = [one.room for one in said if one.room is not None]
    return Health(
        engine=min((one.engine for one in said), key=_ENGINES.index, default="starting"),
        stalled=min((one.stalled for one in said), default=0.0),
        running=sum(one.running for one in said),
        waiting=sum(one.waiting for one in said),
        oldest_waiting=max((one.oldest_waiting for one in said), default=0.0),
        full=all(one.full for one in said),
        room=min(rooms, default=None),
        memory_bytes=sum(one.memory_bytes for one in said),
        budget_bytes=sum(one.budget_bytes for one in said),
        held_by=tuple(holder for one in said for holder in one.held_by),
        tokens={id: count for one in said for id, count in one.tokens.items()},
    )


def requests(found: Found[Sequence[RequestStatus]]) -> list[RequestStatus]:
    """Those of all replicas."""
    return [status for statuses in found.values() for status in statuses]


def known(found: Found[T | None]) -> T | None:
    """What the one replica says that knows it."""
    return next((value for value in found.values() if value is not None), None)


def one_of(found: Found[bool]) -> bool:
    """Whether it is so at a replica."""
    return any(found.values())


def nothing(found: Found[Any]) -> None:
    """There is nothing to say."""
    del found


# The calls that all replicas get, and how their values become one.
GATHERED: Mapping[str, Callable[[Found[Any]], Any]] = {
    "models": models,
    "memory": memory,
    "health": health,
    "requests": requests,
    "status": known,
    "expected_wait": known,
    "unload": one_of,
    "unpin": one_of,
    "forgive": one_of,
    "cancel": nothing,
}


class Gathered:
    """The records of all replicas in one, and how far their loads are.

    Args:
        record: to which their events are added.
        names: what their models are called here.
        resident: whether a replica has the model of an identity in memory.
        tell: is told how far a download or a load is, and in the end that it is over.
    """

    def __init__(
        self,
        record: Record,
        names: ClusterNames,
        resident: Callable[[str], bool],
        tell: Callable[[Progress], None],
    ) -> None:
        self._record = record
        self._names = names
        self._resident = resident
        self._tell = tell
        self._stages: dict[tuple[str, str], Progress] = {}
        self._ahead: dict[str, float] = {}  # this clock, of each replica's: by its fastest news
        self.positions: dict[str, int] = {}

    def add(self, found: Sequence[News]) -> None:
        """Add what replicas have told, in the order in which it happened."""
        here, events = time.monotonic(), []
        for news in found:
            self.positions[news.replica] = news.after
            ahead = here - news.now
            ahead = self._ahead[news.replica] = min(ahead, self._ahead.get(news.replica, ahead))
            events += [_placed(event, news.replica, ahead) for event in news.events]
        for event in sorted(events, key=attrgetter("time")):
            self._record.append(event)
        self._follow([progress for news in found for progress in news.stages])

    def _follow(self, stages: Sequence[Progress]) -> None:
        """Tell how far each stage is at the replica where it is the furthest.

        A model that some replica has is not being loaded to those who ask for it, though another
        replica may load it as well.
        """
        furthest: dict[tuple[str, str], Progress] = {}
        for stage in sorted(stages, key=_share):
            progress, identity = self._names.progress(stage)
            if progress.over or not self._resident(identity):
                furthest[progress.model, progress.stage] = progress
        for subject, progress in furthest.items():
            if self._stages.get(subject) != progress:
                self._tell(progress)
        for subject in self._stages.keys() - furthest.keys():
            if not self._stages[subject].over:
                self._tell(replace(self._stages[subject], over=True))
        self._stages = furthest


def _share(progress: Progress) -> float:
    return progress.done / progress.total if progress.total else 0.0


def _placed(event: Event, replica: str, ahead: float) -> Event:
    """An event with its replica, by the clock of this process."""
    return event._replace(
        time=event.time + ahead,
        job_id=event.job_id and f"{replica}/{event.job_id}",
        details={**event.details, "replica": replica},
    )
