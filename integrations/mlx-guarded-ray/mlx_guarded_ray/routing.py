"""To which replica a request goes: a pure function, for the router and for the simulation.

A replica that has the model answers at once, so it comes first, unless others wait there for a
load: each answer that begins before that load keeps all of them. Where none has it, one has to
load it. That holds up whatever else runs there, so it is one that runs nothing, if there is one;
among those, one where it fits beside what is there. Where it fits nowhere, each model has a home
of its own, by a hash of both names. So every replica keeps the same few models, and what one
replica evicts is not what the next request needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import floor, log
from operator import itemgetter

ROOM = 1.1  # what a model takes, as a share of its weights
LOAD_RATE = 1e9  # bytes a second, until loads have been measured
ANSWER = 5.0  # seconds of an answer, until answers have been measured
SPREAD = 2.0  # a cost of so many loads elsewhere makes a model load at one more replica
NEAR = 1.25  # waits that differ by less than this factor are the same


@dataclass(frozen=True, slots=True)
class ModelAt:
    """A model at a replica.

    Attributes:
        bytes: promised to it; what it is expected to take while it is not resident.
        resident: it is in memory; if not, its load waits or is under way.
        active: requests that run.
        waiting: requests that wait.
        pinned: it is never evicted.
        idle: seconds since its last request.
    """

    bytes: int
    resident: bool = True
    active: int = 0
    waiting: int = 0
    pinned: bool = False
    idle: float = 0.0

    @property
    def busy(self) -> bool:
        """It has requests, or its load is not over."""
        return not self.resident or self.active > 0 or self.waiting > 0


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What is known of one replica.

    Attributes:
        name: tells it from others.
        budget: bytes that its models may take; 0 if that is not known yet.
        models: those in memory or wanted, by `ModelSpec.identity`.
        beside: bytes of the budget that are promised to no model, as the prefix cache's.
        answer: seconds that an answer takes there.
        load_rate: bytes a second that are loaded there.
        max_active: requests of one model that are decoded together.
        idle: nothing runs, waits or loads there. Made of `models`, as the following.
        running: requests that run.
        used: bytes of the models and those beside them.
        loading: bytes whose load waits or is under way.
        deferred: requests that wait for loads.
        pinned: bytes of the models that are never evicted.
    """

    name: str
    budget: int
    models: Mapping[str, ModelAt] = field(default_factory=dict)
    beside: int = 0
    answer: float = ANSWER
    load_rate: float = LOAD_RATE
    max_active: int = 32
    idle: bool = field(init=False, default=True)
    running: int = field(init=False, default=0)
    used: int = field(init=False, default=0)
    loading: int = field(init=False, default=0)
    deferred: int = field(init=False, default=0)
    pinned: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        put = object.__setattr__
        models = self.models.values()
        put(self, "idle", not any(model.busy for model in models))
        put(self, "running", sum(model.active for model in models))
        put(self, "used", self.beside + sum(model.bytes for model in models))
        put(self, "loading", sum(model.bytes for model in models if not model.resident))
        put(self, "deferred", sum(model.waiting for model in models if not model.resident))
        put(self, "pinned", sum(model.bytes for model in models if model.pinned))

    def fits(self, size: int) -> bool:
        """Whether so many bytes fit beside what is there."""
        return not self.budget or self.used + size <= self.budget

    def can_hold(self, size: int) -> bool:
        """Whether they fit once everything is evicted that is not pinned."""
        return not self.budget or self.pinned + size <= self.budget


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes:
        model: its `ModelSpec.identity`; "" for what any replica can do without loading one.
        bytes: that it is expected to take.
        avoid: replicas that have failed at it.
        request_id: of the request in the record.
    """

    model: str
    bytes: int = 0
    avoid: frozenset[str] = frozenset()
    request_id: str = ""


_Keyed = tuple[tuple[float, ...], ReplicaView]  # what comes first, and what it is the key of


def rank(wanted: Wanted, replicas: Iterable[ReplicaView]) -> Sequence[ReplicaView]:
    """The replicas, best first.

    1. Those that have the model, or load it already: by the cost, then by how many run there.
       But an idle one that does not have it comes before them if they cost more than `SPREAD`
       times as much: so a model in demand spreads, and nobody passes a load for long while
       another replica has nothing to do.
    2. The others: those that are idle; those where it fits without evicting; by the cost; by
       the model's home.
    3. Those in which it can never fit, then those that failed at this request.
    """
    model, size = wanted.model, wanted.bytes
    have: list[_Keyed] = []
    lack: list[_Keyed] = []
    last: list[_Keyed] = []
    key: tuple[float, ...]
    for replica in replicas:
        failed = replica.name in wanted.avoid
        if failed or not (model in replica.models or replica.can_hold(size)):
            group, key = last, (failed, cost(replica, wanted))
        elif model in replica.models:
            group, key = have, (cost(replica, wanted), replica.running)
        else:
            near = _near(0.0 if replica.idle else cost(replica, wanted))
            group, key = lack, (not replica.idle, not replica.fits(size), near)
        group.append(((*key, -home(model, replica.name)), replica))
    for group in (have, lack, last):
        group.sort(key=itemgetter(0))
    if have and lack and lack[0][1].idle and have[0][0][0] > SPREAD * cost(lack[0][1], wanted):
        have.insert(0, lack.pop(0))
    return [replica for _, replica in (*have, *lack, *last)]


def cost(replica: ReplicaView, wanted: Wanted) -> float:
    """Seconds that a request there makes somebody wait: itself, and those whom it passes.

    A load waits for what runs, and for the loads that were wanted before it. A request whose model
    is there waits for those of its model before it, if more are there than are decoded together,
    and makes those wait longer who wait for a load.
    """
    here = replica.models.get(wanted.model)
    if here is not None and here.resident:
        rounds = (here.active + here.waiting) // replica.max_active
        return (rounds + replica.deferred) * replica.answer
    drain = replica.answer if replica.running else 0.0
    bytes_before = replica.loading + (wanted.bytes if here is None else 0)
    return drain + bytes_before / replica.load_rate


@lru_cache(maxsize=1 << 20)
def home(model: str, replica: str) -> float:
    """How much a replica is a model's home, from 0 to 1 (rendezvous hashing)."""
    digest = blake2b(f"{model}\0{replica}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _near(wait: float) -> int:
    """A wait by powers of `NEAR`, so that waits that hardly differ are equal."""
    return floor(log(wait, NEAR)) if wait > 0.01 else -100
