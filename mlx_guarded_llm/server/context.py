"""What the handlers of requests have in common."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from starlette.requests import Request

from ..backend import ServableBackend
from ..backend.shared_server import ServerEntry, this_process
from .conversations import Conversations
from .ending import Ending
from .errors import HTTPError
from .loads import Loads
from .models import ServedModels
from .security import Client, Gate
from .settings import Settings
from .tally import Tally
from .under_way import UnderWay

CROWDED = "crowded"  # in the state of a request: its connection is one too many


@dataclass(frozen=True)
class Context:
    """One server's parts.

    Attributes:
        gate: who may ask.
        models: that they may ask.
        tally: what has happened so far.
        loads: that clients asked for.
        conversations: that clients may go on with by a name.
        under_way: requests of remote backends.
        ending: whether it still takes requests.
        urls: where it listens, once it does.
        run_id: tells this run of it from others.
    """

    settings: Settings
    backend: ServableBackend
    gate: Gate
    models: ServedModels
    tally: Tally
    loads: Loads
    conversations: Conversations
    under_way: UnderWay = field(default_factory=UnderWay)
    ending: Ending = field(default_factory=Ending)
    urls: list[str] = field(default_factory=list)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def entry(self) -> ServerEntry:
        """Who this server is."""
        log = self.settings.log_file
        return this_process(
            "ending" if self.ending.begun else "serving",
            urls=tuple(self.urls),
            log="" if log is None else str(log),
        )

    @classmethod
    def of(cls, request: Request) -> Context:
        """That of the server which a request came to."""
        context: Context = request.app.state.context
        return context


def client_of(request: Request) -> Client:
    """Who asks; the gate has let it through."""
    client: Client = request.state.client
    return client


def check_admin(request: Request) -> None:
    """Let only those go on who may do and see everything.

    Raises:
        HTTPError: 403.
    """
    require_admin(client_of(request))


def require_admin(client: Client) -> None:
    """As `check_admin`, for a client.

    Raises:
        HTTPError: 403.
    """
    if not client.admin:
        raise HTTPError(
            403,
            "not_allowed",
            "this key may not do that.",
            hint="`admin = true` in its table of the settings lets it.",
        )


def new_id(kind: str) -> str:
    """A name for an answer, which is that of its request in the record as well."""
    return f"{kind}-{uuid.uuid4().hex}"
