"""What a router knows of the replicas: their own reports, and what it has sent since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from .routing import ANSWER, LOAD_RATE, ModelAt, ReplicaView, Wanted


@dataclass(frozen=True, slots=True)
class Report:
    """How a replica is, in its own words; see `replica.Replica`.

    Attributes:
        name: of the replica.
        count: of its reports so far; a report that comes late has a lower one.
        view: what it says.
        requests: those it has, by id.
    """

    name: str
    count: int
    view: ReplicaView
    requests: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, which is what Ray Serve carries."""
        view = self.view
        return {
            "name": self.name,
            "count": self.count,
            "budget": view.budget,
            "beside": view.beside,
            "answer": view.answer,
            "load_rate": view.load_rate,
            "max_active": view.max_active,
            "requests": sorted(self.requests),
            "models": {
                name: [m.bytes, m.resident, m.active, m.waiting, m.pinned, m.idle]
                for name, m in view.models.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """What `as_dict` made."""
        view = ReplicaView(
            name=values["name"],
            budget=values["budget"],
            models={name: ModelAt(*fields) for name, fields in values["models"].items()},
            beside=values["beside"],
            answer=values["answer"] or ANSWER,
            load_rate=values["load_rate"] or LOAD_RATE,
            max_active=values["max_active"],
        )
        return cls(values["name"], values["count"], view, frozenset(values["requests"]))


@dataclass(slots=True)
class _Sent:
    wanted: Wanted
    routed: bool = True  # or a replica was chosen, and the request may yet be withdrawn
    ended: bool = False


@dataclass(slots=True)
class _Page:
    """One replica's."""

    report: Report | None = None
    sent: dict[str, _Sent] = field(default_factory=dict)
    view: ReplicaView | None = None  # until something changes


class Book:
    """Keeps the views of all replicas. It may be used from any thread."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}
        self._lock = Lock()

    def report(self, report: Report) -> None:
        """A replica says how it is. What is older than its last word is ignored."""
        with self._lock:
            page = self._pages.setdefault(report.name, _Page())
            if page.report is not None and page.report.count >= report.count:
                return
            page.report = report
            # It may have been made when an answer was whole and its request not yet over.
            page.sent = {
                id: sent
                for id, sent in page.sent.items()
                if sent.routed and (not sent.ended or sent.wanted.request_id in report.requests)
            }
            page.view = None

    def chosen(self, call: str, wanted: Wanted, replica: str) -> None:
        """A request is about to go to a replica. What is chosen meanwhile takes account of it."""
        self._place(call, wanted, replica, routed=False)

    def sent(self, call: str, wanted: Wanted, replica: str) -> None:
        """A request went to a replica, by a call of this id."""
        self._place(call, wanted, replica, routed=True)

    def withdraw(self, call: str) -> None:
        """A request goes nowhere yet."""
        with self._lock:
            self._forget(call)

    def _place(self, call: str, wanted: Wanted, replica: str, *, routed: bool) -> None:
        if not wanted.model:
            return
        with self._lock:
            self._forget(call)
            page = self._pages.setdefault(replica, _Page())
            page.sent[call] = _Sent(wanted, routed)
            page.view = None

    def _forget(self, call: str) -> None:
        for page in self._pages.values():
            if page.sent.pop(call, None) is not None:
                page.view = None

    def ended(self, call: str, replica: str) -> None:
        """A call is over. Its model is thought to be there until the next report."""
        with self._lock:
            page = self._pages.get(replica)
            if page is not None and call in page.sent:
                page.sent[call].ended = True
                page.view = None

    def answered(self, request_id: str, replica: str) -> None:
        """As `ended`, for a request whose answer is whole before its call is over."""
        with self._lock:
            page = self._pages.get(replica)
            for sent in page.sent.values() if page is not None else ():
                if sent.wanted.request_id == request_id:
                    sent.ended = True
            if page is not None:
                page.view = None

    def keep(self, replicas: Iterable[str]) -> None:
        """These replicas are there; what is known of others is forgotten."""
        there = set(replicas)
        with self._lock:
            self._pages = {name: page for name, page in self._pages.items() if name in there}

    def view(self, replica: str) -> ReplicaView:
        """What is known of a replica by now."""
        with self._lock:
            page = self._pages.get(replica)
            if page is None:
                return ReplicaView(replica, 0)
            if page.view is None:
                page.view = _view(replica, page)
            return page.view

    def size(self, model: str) -> int | None:
        """Bytes that a model takes where it is resident; None if it is nowhere."""
        with self._lock:
            pages = tuple(self._pages.values())
        for page in pages:
            found = page.report.view.models.get(model) if page.report else None
            if found is not None and found.resident and found.bytes:
                return found.bytes
        return None


def _view(name: str, page: _Page) -> ReplicaView:
    """A report, and what was sent behind it."""
    report = page.report or Report(name, 0, ReplicaView(name, 0))
    models = dict(report.view.models)
    for sent in page.sent.values():
        model = sent.wanted.model
        here = models.get(model)
        if here is None:
            models[model] = here = ModelAt(sent.wanted.bytes, resident=sent.ended)
        reported = sent.wanted.request_id in report.requests
        if sent.ended:
            active = max(here.active - 1, 0) if reported else here.active
            waiting = max(here.waiting - 1, 0) if reported and not here.active else here.waiting
            models[model] = replace(here, resident=True, active=active, waiting=waiting)
        elif not reported:
            models[model] = replace(here, waiting=here.waiting + 1)
    room = report.view.budget - report.view.beside if report.view.budget else None
    keep = {sent.wanted.model for sent in page.sent.values() if not sent.ended}
    _evict(room, models, keep)
    return replace(report.view, models=models)


def _evict(room: int | None, models: dict[str, ModelAt], keep: set[str]) -> None:
    """What the replica's guard will evict for what was sent: idle models, the longest first."""
    if room is None:
        return
    over = sum(model.bytes for model in models.values()) - room
    for name in _evictable(models):
        if over > 0 and name not in keep:
            over -= models.pop(name).bytes


def _evictable(models: Mapping[str, ModelAt]) -> Sequence[str]:
    idle = [(-m.idle, name) for name, m in models.items() if not (m.busy or m.pinned)]
    return [name for _, name in sorted(idle)]
