"""A backend whose models run at replicas of Ray Serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.serve.handle import DeploymentHandle

from mlx_guarded_llm.backend import ServableBackend
from mlx_guarded_llm.backend.remote.calling import CallingBackend
from mlx_guarded_llm.models import OnProgress, Progress
from mlx_guarded_llm.record import Event, Record
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.opening import make_catalog

from .calls import PATIENCE, RayCalls
from .names import ClusterNames
from .router import book_of


class RayBackend(CallingBackend, ServableBackend):
    """What `mlx-guarded serve` asks of a backend, answered by replicas.

    It checks and sends what is asked. Each replica has a guard and a memory budget of its own; the
    router decides which of them gets a request. Where one dies in the middle of an answer, another
    goes on behind its last token.

    Args:
        handle: of the deployment of `replica.Replica`.
        settings: of the server.
    """

    _hint_closed = "Deploy the application again."
    _hint_forked = "Use it in the process that Ray Serve started."

    def __init__(self, handle: DeploymentHandle[Any], settings: Settings) -> None:
        self._record = Record()
        self._followers: tuple[OnProgress, ...] = ()
        self._names = ClusterNames(make_catalog(settings))
        calls = RayCalls(
            handle,
            book_of(handle.deployment_name),
            self._names,
            self._record,
            self._tell,
            settings.heartbeat,
        )
        super().__init__(calls, timeout=settings.guard.timeout)
        self._ray = calls

    def full_name(self, model: str | Path, **options: Any) -> str:
        """See `BaseBackend.full_name`."""
        return self._names.catalog.full_name(model, **options)

    def identity(self, model: str | Path, **options: Any) -> str:
        """See `ServableBackend.identity`."""
        return self._names.identity(model, **options)

    def aliases(self) -> list[str]:
        """See `ServableBackend.aliases`."""
        return [*self._names.catalog.aliases()]

    @property
    def record(self) -> Record:
        """See `ServableBackend.record`: that of all replicas, a second late at the most."""
        return self._record

    def events(self) -> tuple[Event, ...]:
        """See `BaseBackend.events`."""
        self._check_open()
        self._ray.catch_up(2 * PATIENCE)  # behind a gathering that has begun
        return self._record.events()

    def follow_progress(self, follower: OnProgress) -> Callable[[], None]:
        """Have a function hear of every download and load at the replicas, once a second."""
        self._followers = (*self._followers, follower)

        def leave() -> None:
            self._followers = tuple(f for f in self._followers if f is not follower)

        return leave

    def _tell(self, progress: Progress) -> None:
        for follower in self._followers:
            self._callbacks.tell(follower, progress)
