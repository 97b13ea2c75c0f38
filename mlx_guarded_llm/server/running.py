"""Running the application with uvicorn, until a signal ends it."""

from __future__ import annotations

import gc
import logging
import os
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from ..backend import ServableBackend, shared_server
from ..backend.shared_server import Claim
from ..errors import InvalidRequest
from ..logs import get_logger
from .app import create_app
from .connections import SPARE, Connection
from .context import Context
from .security import Client
from .settings import Settings

logger = get_logger("server")

GRACE = 5.0  # seconds for connections to close after the drain
BACKLOG = 2048
# Connections that one turn of the event loop accepts, as asyncio understands `backlog`. When many
# clients arrive at once, a turn that took them all would hold up every stream for as long.
ACCEPTED_AT_ONCE = 16
# Seconds that a connection is kept for the next request. Clients of httpx, OpenAI's among
# them, keep one for five: closed by the server just then, it would fail a request.
KEEP_ALIVE = 30
OWN_FILES = 256  # descriptors that are no connections


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a server that has just started says about itself.

    Attributes:
        models: names of the served models; those of the shared server are not all.
        urls: its addresses.
        socket: the Unix socket behind the first of them, if it is one.
        needs_key: clients of the first must send a key.
    """

    models: Sequence[str]
    urls: Sequence[str]
    socket: Path | None
    needs_key: bool

    @property
    def url(self) -> str:
        """The first address."""
        return self.urls[0]


@contextmanager
def sharing(settings: Settings) -> Iterator[Claim | None]:
    """Be the shared server of this user until the end of the block, if the settings say so.

    Raises:
        ServerAlreadyRunning: one runs.
        InvalidRequest: its folder cannot be used.
    """
    with shared_server.claim() if settings.share else nullcontext() as claim:
        yield claim


def run(
    backend: ServableBackend,
    settings: Settings,
    begun: Callable[[Serving], None],
    claim: Claim | None = None,
) -> bool:
    """Serve until a signal, or one of its clients, ends it.

    Args:
        backend: runs the models; it is not closed here.
        settings: of the server.
        begun: called once it accepts requests.
        claim: of `sharing`.

    Returns:
        Whether it shut down in order; False after a second signal.

    Raises:
        InvalidRequest: the settings contradict each other, or the address is not available.
    """
    app = create_app(backend, settings)
    context: Context = app.state.context
    _allow_files(settings.limits.connections + SPARE + OWN_FILES)
    with ExitStack() as opened:
        sockets = [opened.enter_context(sock) for sock in _listen_everywhere(settings)]
        context.urls.extend(map(_url, sockets))
        shared = shared_server.socket_path() if claim is not None else None
        serving = Serving(
            models=[model.name for model in context.models.visible(Client())],
            urls=context.urls,
            socket=shared or settings.uds,
            needs_key=context.gate.needs_key and claim is None,
        )

        def serves() -> None:
            if claim is not None:
                claim.write(context.entry)
            begun(serving)

        def ends() -> None:
            if claim is not None:
                claim.write(replace(context.entry, state="ending"))

        server = Server(app, serves, ends)
        # What is there by now is no garbage. Each search through it would hold up every stream.
        gc.freeze()
        server.run(sockets=sockets)
    return not server.force_exit


class Server(uvicorn.Server):
    """Uvicorn's server, but the first signal lets answers finish and the second one stops at once.

    Args:
        app: of `create_app`.
        started: called once it accepts requests.
        asked: called when it is asked to end.
    """

    def __init__(
        self,
        app: Starlette,
        started: Callable[[], None],
        asked: Callable[[], None] = lambda: None,
    ) -> None:
        context: Context = app.state.context
        settings = context.settings
        config = uvicorn.Config(
            app,
            http=Connection,
            log_config=None,
            log_level="error",  # what clients do wrong is none, and would fill the log
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            backlog=ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=int(settings.drain + GRACE),
            timeout_keep_alive=KEEP_ALIVE,
        )
        super().__init__(config)
        self._context = context
        self._started = started
        self._asked = asked
        context.ending.on_asked = self._end

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`. What a second signal cuts off is no error to be logged."""
        log = logging.getLogger("uvicorn.error")

        def told(_: logging.LogRecord) -> bool:
            return not self.force_exit

        log.addFilter(told)
        try:
            super().run(sockets)
        finally:
            log.removeFilter(told)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(BACKLOG)  # asyncio made the system's queue as short as a turn's share
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        self._context.ending.begin(self._context.settings.drain)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn, does not raise the signal again at the end: the exit code is 0."""
        del sig, frame
        self._end(now=self.should_exit)

    def _end(self, *, now: bool) -> None:
        self.force_exit = self.force_exit or now
        self.should_exit = True
        self._asked()


def _listen_everywhere(settings: Settings) -> Iterator[AbstractContextManager[socket.socket]]:
    if settings.share:
        yield _removed(_listen_at(shared_server.socket_path(), 0o600))
    if not settings.only_shared:
        sock = listen(settings)
        yield sock if settings.uds is None else _removed(sock)


@contextmanager
def _removed(sock: socket.socket) -> Iterator[socket.socket]:
    """A Unix socket whose file goes with it."""
    path = Path(sock.getsockname())
    with sock:
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


def listen(settings: Settings) -> socket.socket:
    """Open the listening socket of a server.

    Raises:
        InvalidRequest: the address is not available.
    """
    if settings.uds is not None:
        return _listen_at(settings.uds, int(settings.uds_mode, 8))
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
        # Inherited by every connection: without it, a token waits up to 40 ms for the client's
        # acknowledgement of the one before. asyncio sets it for sockets that it makes itself.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        raise InvalidRequest(
            f"{settings.host}:{settings.port} is not available ({error.strerror}).",
            hint="Is a server running there? --port takes another; 0 is a free one.",
        ) from error


def _allow_files(count: int) -> None:
    """Let this process open so many files: macOS allows 256 unless one asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        most = soft
    if most < count:
        logger.warning(
            "this process may open %d files, and limits.connections needs %d. "
            "Raise the hard limit (ulimit -Hn), or lower limits.connections.",
            most,
            count,
        )


def _url(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return shared_server.url_of(Path(sock.getsockname()).absolute())
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen_at(path: Path, mode: int) -> socket.socket:
    """A Unix socket that has its permissions from the start."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()  # left behind by a server that died
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise InvalidRequest(
            f"{path} is not available ({error.strerror}).",
            hint="Is a server running there?",
        ) from error
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
