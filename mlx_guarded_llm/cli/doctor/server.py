"""Asking a server what the diagnosis needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import GuardedLLMError, InvalidRequest
from .. import backends
from .checks import Check

if TYPE_CHECKING:
    from ...backend.remote.backend import RemoteBackend
    from .diagnosis import Seen

_EVENTS = 20_000
_ASKED = 3  # requests of which it is asked how long they have to wait


def of_server(url: str) -> Iterator[Check]:
    """The checks of a server; if it does not answer, that is the only one."""
    from .diagnosis import diagnose

    try:
        with backends.open_server(url) as backend:
            seen = look(backend)
    except GuardedLLMError as error:
        yield Check(name="server", ok=False, text=error.message, hint=error.hint)
        return
    yield from diagnose(seen)


def look(backend: RemoteBackend) -> Seen:
    """What a server says of itself now; what others do only if this client may see it."""
    from .diagnosis import Seen

    health, models = backend.health(), backend.models()
    try:
        news, requests = backend.news(most=_EVENTS), backend.requests()
    except InvalidRequest:
        return Seen(health=health, models=models, events=None)
    waiting = [request for request in requests if request.state != "running"][:_ASKED]
    told = [backend.status(request.request_id) or request for request in waiting]
    return Seen(health=health, models=models, requests=told, events=news.events, now=news.now)
