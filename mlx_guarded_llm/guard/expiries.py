"""When requests time out."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from .state import RequestState


class Expiries:
    """The deadlines of the requests that have one; those that ended are passed over.

    Args:
        requests: every request that has not ended, by id.
    """

    def __init__(self, requests: Mapping[str, RequestState]) -> None:
        self._requests = requests
        self._heap: list[tuple[float, int, RequestState]] = []

    def add(self, request: RequestState) -> None:
        if request.expires is not None:
            heapq.heappush(self._heap, (request.expires, request.order, request))

    def next(self) -> float | None:
        """The earliest deadline."""
        # An id may be used again after its end, so the request itself is compared.
        while self._heap and self._requests.get(self._heap[0][2].id) is not self._heap[0][2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[RequestState]:
        """Take out the requests whose deadline has passed, one after the other."""
        while (time := self.next()) is not None and time <= now:
            yield heapq.heappop(self._heap)[2]
