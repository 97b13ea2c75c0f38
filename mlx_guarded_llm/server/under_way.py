"""Which requests of remote backends are under way, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .security import Client


class UnderWay:
    """The requests of remote backends that run, and whose they are. Belongs to the event loop."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    @contextmanager
    def listed(self, request_id: str, client: str) -> Iterator[None]:
        """Within it the client may cancel the request."""
        if request_id in self._owners:  # the backend refuses a second one of this id
            yield
            return
        self._owners[request_id] = client
        try:
            yield
        finally:
            del self._owners[request_id]

    def may_cancel(self, request_id: str, client: Client) -> bool:
        """Whether it is the client's own and runs, or the client is an admin."""
        return client.admin or self._owners.get(request_id) == client.name
