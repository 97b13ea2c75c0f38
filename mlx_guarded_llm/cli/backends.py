"""Which backend a command asks. Tests replace it here with a fake one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from . import arguments

if TYPE_CHECKING:
    from ..backend import BaseBackend
    from ..backend.remote.backend import RemoteBackend


def open_backend(*, url: str | None = None, local: bool = False, **options: Any) -> BaseBackend:
    """A backend for a `with` statement: a server's if there is one, else one of this process.

    Args:
        url: see `find_server`.
        local: as well.
        **options: those of `Backend`; None says nothing.

    Raises:
        InvalidRequest: a server is to be asked, and there are options that it does not take.
        ServerUnavailable: it does not answer.
    """
    from ..backend import Backend

    found = find_server(url=url, local=local, **options)
    if found is not None:
        return Backend.connect(found)
    return Backend(**arguments.given(**options))


def open_server(url: str | None) -> RemoteBackend:
    """The backend of a server, for a command that only a server can answer.

    Args:
        url: see `find_server`.

    Raises:
        ServerUnavailable: there is none, or it does not answer.
    """
    from ..backend import Backend
    from ..backend.default_backend import server_url

    found = url or server_url({}, share=True)
    assert found is not None
    backend = Backend.connect(found)  # which says what to install if it cannot
    from ..backend.remote.backend import RemoteBackend

    assert isinstance(backend, RemoteBackend)
    return backend


def find_server(*, url: str | None, local: bool, **options: Any) -> str | None:
    """The address of the server that a command asks, or None if it asks none.

    Args:
        url: of the server that is to be asked; None: the one that `default_backend` would ask.
        local: never ask one.
        **options: that no server takes; None says nothing.

    Raises:
        InvalidRequest: a server is to be asked, and there are such options.
    """
    from ..backend.default_backend import server_url

    given = arguments.given(**options)
    if url is not None and local:
        raise InvalidRequest("--url asks a server, and --local none.", hint="Give one of the two.")
    if url is not None and given:
        raise InvalidRequest(
            f"a server takes no {', '.join(given)} from those who ask it.",
            hint="It is told when it is started; leave out that, or --url.",
        )
    return url or server_url(given, share=False if local else None)
