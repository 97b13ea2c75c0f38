"""Ray Serve's request router, with our decision: see `routing`."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from .book import Book, Report
from .routing import Wanted, rank

# Of each deployment. Ray Serve makes the router in the process of the handle, where the backend
# that asks by this handle shares the book with it.
_books: dict[str, Book] = {}


def book_of(deployment: str) -> Book:
    """What this process knows of a deployment's replicas."""
    return _books.setdefault(deployment, Book())


class GuardedRouter(RequestRouter):
    """Sends a request where its model is, or to where it disturbs the least.

    The first argument of what it routes is a `routing.Wanted`.
    """

    def initialize_state(self, **options: Any) -> None:
        """See `RequestRouter`."""
        super().initialize_state(**options)
        self._book = book_of(self._deployment_id.name)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """See `RequestRouter`; with them come their last routing stats."""
        for replica in replicas:
            if replica.routing_stats:
                self._book.report(Report.from_dict(replica.routing_stats))
        self._book.keep(replica.replica_id.unique_id for replica in replicas)
        super().update_replicas(replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """See `RequestRouter`: each replica is a rank of its own."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        wanted, call = _wanted(pending_request), None
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            call = pending_request.metadata.internal_request_id
            self._book.withdraw(call)
        ranked = rank(wanted, map(self._book.view, by_name))
        if call is not None and ranked:
            self._book.chosen(call, wanted, ranked[0].name)
        return [[by_name[view.name]] for view in ranked]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """See `RequestRouter`."""
        del result
        name = pending_request.metadata.internal_request_id
        self._book.sent(name, _wanted(pending_request), replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """See `RequestRouter`."""
        self._book.ended(internal_request_id, replica_id.unique_id)


def _wanted(pending: PendingRequest | None) -> Wanted:
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, Wanted) else Wanted("")
