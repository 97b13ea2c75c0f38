"""What several replicas say, as one backend says it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

from mlx_guarded_llm.backend import Health, ModelInfo
from mlx_guarded_llm.backend.request_status import RequestStatus
from mlx_guarded_llm.record import Event, Record

T = TypeVar("T")
News = tuple[str, Sequence[Event], int, float]  # see `replica.Replica.news`

# The states of a model, what most of a cluster has of it first.
_STATES = ("resident", "unloading", "loading", "deferred", "queued", "quarantined")
_ENGINES = ("working", "idle", "starting", "failed", "closed")


def models(found: Sequence[Sequence[ModelInfo]]) -> list[ModelInfo]:
    """The models of all replicas, each once."""
    every = sorted((info for infos in found for info in infos), key=attrgetter("name"))
    return [_model(list(same)) for _, same in groupby(every, key=attrgetter("name"))]


def _model(infos: Sequence[ModelInfo]) -> ModelInfo:
    first = min(infos, key=lambda info: _STATES.index(info.state))
    idle = [info.idle_seconds for info in infos]
    return replace(
        first,
        pinned=any(info.pinned for info in infos),
        active=sum(info.active for info in infos),
        waiting=sum(info.waiting for info in infos),
        memory_bytes=sum(info.memory_bytes for info in infos),
        crashes=sum(info.crashes for info in infos),
        cause=next((info.cause for info in infos if info.cause), ""),
        idle_seconds=None if None in idle else min(map(float, filter(None, idle)), default=0.0),
    )


def memory(found: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Bytes promised and the budgets, of all."""
    return sum(used for used, _ in found), sum(budget for _, budget in found)


def health(found: Sequence[Health]) -> Health:
    """It is as well as its best replica, and its queue as old as the oldest."""
    rooms = [one.room for one in found if one.room is not None]
    return Health(
        engine=min((one.engine for one in found), key=_ENGINES.index, default="starting"),
        stalled=min((one.stalled for one in found), default=0.0),
        running=sum(one.running for one in found),
        waiting=sum(one.waiting for one in found),
        oldest_waiting=max((one.oldest_waiting for one in found), default=0.0),
        full=all(one.full for one in found),
        room=min(rooms, default=None),
        memory_bytes=sum(one.memory_bytes for one in found),
        budget_bytes=sum(one.budget_bytes for one in found),
        held_by=tuple(holder for one in found for holder in one.held_by),
        tokens={id: count for one in found for id, count in one.tokens.items()},
    )


def requests(found: Sequence[Sequence[RequestStatus]]) -> list[RequestStatus]:
    """Those of all replicas."""
    return [status for statuses in found for status in statuses]


def known(found: Sequence[T | None]) -> T | None:
    """What the one replica says that knows it."""
    return next((value for value in found if value is not None), None)


def nothing(found: Sequence[Any]) -> None:
    """There is nothing to say."""
    del found


# The calls that all replicas get, and how their values become one.
GATHERED: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "models": models,
    "memory": memory,
    "health": health,
    "requests": requests,
    "status": known,
    "expected_wait": known,
    "unload": any,
    "unpin": any,
    "forgive": any,
    "cancel": nothing,
}


class Gathered:
    """The records of all replicas in one.

    Args:
        record: to which their events are added.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self.positions: dict[str, int] = {}

    def add(self, found: Sequence[News]) -> None:
        """Add what replicas have told, in the order in which it happened."""
        here, events = time.monotonic(), []
        for replica, news, after, now in found:
            self.positions[replica] = after
            events += [_placed(event, replica, here - now) for event in news]
        for event in sorted(events, key=attrgetter("time")):
            self._record.append(event)


def _placed(event: Event, replica: str, late: float) -> Event:
    """An event with its replica, by the clock of this process."""
    return event._replace(
        time=event.time + late,
        job_id=event.job_id and f"{replica}/{event.job_id}",
        details={**event.details, "replica": replica},
    )
