"""The end of a server: nothing new, then a while for the answers, then a word to the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .errors import HTTPError, refused


class Ending:
    """How far it is with that. Belongs to the event loop.

    Attributes:
        begins: set when nothing new is taken any more.
        on_asked: ends the process that serves, at once if `now`; None if it serves others, too.
    """

    def __init__(self) -> None:
        self.on_asked: Callable[..., None] | None = None
        self.begins = asyncio.Event()
        self._over = False
        self._listeners: set[Callable[[], object]] = set()

    @property
    def begun(self) -> bool:
        """Nothing new is taken."""
        return self.begins.is_set()

    def begin(self, patience: float) -> None:
        """Take nothing new; after so many seconds what still runs is told so."""
        self.begins.set()
        asyncio.get_running_loop().call_later(patience, self._tell)

    def when_over(self, listener: Callable[[], object]) -> None:
        """Have it called when what still runs is to end; at once, if that is already so."""
        self._listeners.add(listener)
        if self._over:
            listener()

    def forget(self, listener: Callable[[], object]) -> None:
        """It has ended by itself. Harmless if it is not known."""
        self._listeners.discard(listener)

    def ask(self, *, now: bool) -> None:
        """Have the process end.

        Raises:
            HTTPError: it is not ours to end.
        """
        if self.on_asked is None:
            raise refused("this server is part of another program.", hint="End that program.")
        self.on_asked(now=now)

    def check(self) -> None:
        """Refuse what is new.

        Raises:
            HTTPError: the end has begun.
        """
        if self.begun:
            raise shutting_down()

    def _tell(self) -> None:
        self._over = True
        for listener in tuple(self._listeners):
            listener()


def shutting_down() -> HTTPError:
    """What is told then."""
    return HTTPError(
        503,
        "shutting_down",
        "the server is shutting down.",
        hint="Ask again when it is back.",
        headers={"retry-after": "10"},
    )
