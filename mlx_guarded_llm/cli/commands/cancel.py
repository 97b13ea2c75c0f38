"""`mlx-guarded cancel`: stop requests of a server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InvalidRequest, RequestTimeout
from .. import arguments, backends
from ..console import harmless, out, say
from ..waiting import within

if TYPE_CHECKING:
    from ...backend import BaseBackend


def cancel(
    requests: Annotated[
        list[str],
        typer.Argument(
            help="Ids, of which `mlx-guarded status` has those under way.",
            metavar="REQUEST...",
            show_default=False,
        ),
    ],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for their end.")] = 30.0,
    url: arguments.Url = None,
) -> None:
    """Stop requests.

    Whoever asked gets what there is of the answer, and the finish reason
    "cancelled".

    [dim]mlx-guarded cancel chatcmpl-a4be82225e8a4a25858886a8af5673e8[/dim]
    """
    with backends.open_server(url) as backend:
        for name in requests:
            status = backend.status(name)
            if status is None:
                raise InvalidRequest(
                    f"there is no request {name!r} under way.",
                    hint="`mlx-guarded status` has those that are.",
                )
            own = status.request_id  # of a call with several attempts, that of the last
            backend.cancel(own)
            if not within(timeout, partial(_has_ended, backend, own)):
                raise RequestTimeout(
                    f"{own} has not ended within {timeout:g} s.",
                    hint="It ends at its next token. A key without `admin` cancels only requests "
                    "of its own.",
                )
            say(out(), f"{harmless(own)} is cancelled")


def _has_ended(backend: BaseBackend, request_id: str) -> bool:
    return backend.status(request_id) is None
