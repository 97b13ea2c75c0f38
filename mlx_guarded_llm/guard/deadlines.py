"""The heap of the requests' own deadlines."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping

from .state import RequestState

_SPARE = 64  # the heap is rebuilt when it has this many entries more than twice the open requests


class Deadlines:
    """The deadlines of all open requests that have one. Finished requests are skipped.

    Args:
        requests: every request that has not finished, by id.
    """

    def __init__(self, requests: Mapping[str, RequestState]) -> None:
        self._requests = requests
        self._heap: list[tuple[float, int, RequestState]] = []
        self._count = itertools.count()

    def add(self, request: RequestState) -> None:
        """Watch the deadline of this request, if it has one."""
        if request.expires is None:
            return
        if len(self._heap) > 2 * len(self._requests) + _SPARE:
            self._heap = [due for due in self._heap if self._open(due[2])]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (request.expires, next(self._count), request))

    def next(self) -> float:
        """The earliest deadline, or infinity."""
        while self._heap:
            time, _, request = self._heap[0]
            if self._open(request):
                return time
            heapq.heappop(self._heap)
        return math.inf

    def take(self, now: float) -> RequestState | None:
        """Remove and return the first request whose deadline has passed, if there is one."""
        return heapq.heappop(self._heap)[2] if self.next() <= now else None

    def _open(self, request: RequestState) -> bool:
        # An id may be used again once its request has finished, so objects are compared.
        return self._requests.get(request.id) is request
