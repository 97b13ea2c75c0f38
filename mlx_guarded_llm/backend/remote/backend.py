"""A backend whose models a server runs."""

from __future__ import annotations

from ...errors import InvalidRequest, RequestTimeout, ServerUnavailable
from ...json_values import plain_text
from ..options import seconds
from ..shared_server import ServerEntry
from .calling import CallingBackend
from .connection import Connection
from .frames import VERSION, News, Served

HELLO = 10.0  # seconds for its first word, of which one that hangs is known


class RemoteBackend(CallingBackend):
    """Asks a server to run models: `Backend.connect` makes one.

    Its methods, results and errors are those of `Backend`. Only `run` is refused: a server
    runs nobody's functions. What a name means, the server says.

    Args:
        url: "http://host:port", or "unix:///path" for a Unix socket.
        key: of the server, if it needs one.
        timeout: seconds a request may take in all, unless it says otherwise.

    Raises:
        InvalidRequest: the address is none, or the server refuses the key.
        ServerUnavailable: no server answers there.
    """

    _hint_closed = "Call Backend.connect(url) again."
    _hint_forked = "Call Backend.connect(url) in the child."

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 3600.0) -> None:
        patience = seconds("timeout", timeout)
        self.url = plain_text(url, "url")
        super().__init__(Connection(self.url, key), timeout=patience)
        try:
            self._check_version(self._hello())
        except BaseException:
            self.close()
            raise

    def news(self, mark: str = "", *, most: int) -> News:
        """What its record has that came after a mark; see `frames.News`.

        Args:
            mark: of the news before; "" for the last events. That of a server which ran before
                this one stands before all events of this one.
            most: events where there is no mark.
        """
        news: News = self._ask("news", {"mark": mark, "most": most})
        return news

    def served(self) -> list[Served]:
        """The models that this client may name there, and others that are in memory, by name."""
        found: list[Served] = self._ask("served")
        return found

    def server_entry(self) -> ServerEntry:
        """Who the server is."""
        entry: ServerEntry = self._ask("server")
        return entry

    def end_server(self, *, now: bool = False) -> None:
        """Ask the server to end; it needs a key with `admin`, if there are keys.

        Args:
            now: do not let answers end first.
        """
        self._ask("end", {"now": now})

    def _hello(self) -> int:
        try:
            version: int = self._ask("hello", patient=False, within=HELLO)
        except RequestTimeout as error:
            raise ServerUnavailable(
                f"a server listens at {self.url}, but has said nothing for {HELLO:g} s.",
                hint="It hangs, or the machine is too busy. `mlx-guarded status` tells about your "
                "shared server, and `mlx-guarded stop --now` ends one that hangs.",
            ) from error
        return version

    def _check_version(self, theirs: int) -> None:
        if theirs != VERSION:
            raise InvalidRequest(
                f"the server at {self.url} speaks version {theirs} of the protocol, and this "
                f"is version {VERSION}.",
                hint="Install the same version of mlx-guarded-llm at both ends. A server that was "
                "started before an update: `mlx-guarded stop`, and start it again.",
            )
