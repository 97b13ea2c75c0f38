"""When requests time out."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

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
        while self._heap:
            time, _, request = self._heap[0]
            # An id may be used again after its end, so the request itself is compared.
            if self._requests.get(request.id) is request:
                return time
            heapq.heappop(self._heap)
        return None

    def take(self, now: float) -> RequestState | None:
        """Take out the first request whose deadline has passed."""
        time = self.next()
        return None if time is None or time > now else heapq.heappop(self._heap)[2]
