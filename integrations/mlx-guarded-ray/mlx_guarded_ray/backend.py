"""A backend whose models run at replicas of Ray Serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray.serve.handle import DeploymentHandle

from mlx_guarded_llm.backend.remote.calling import CallingBackend
from mlx_guarded_llm.backend.streams import AsyncStream
from mlx_guarded_llm.models import Catalog, OnProgress
from mlx_guarded_llm.record import Event, Record
from mlx_guarded_llm.server import Settings
from mlx_guarded_llm.server.opening import make_catalog

from .calls import PATIENCE, RayCalls
from .gathering import Gathered
from .router import book_of


class RayBackend(CallingBackend):
    """What `mlx-guarded serve` asks of a backend, answered by replicas.

    It checks and sends what is asked. Each replica has a guard and a memory budget of its own; the
    router decides which of them gets a request. Where one dies in the middle of an answer, another
    goes on behind its last token.

    Args:
        handle: of the deployment of `replica.Replica`.
        settings: of the server.

    Attributes:
        record: of all replicas, a second late at the most.
    """

    _hint_closed = "Deploy the application again."
    _hint_forked = "Use it in the process that Ray Serve started."

    def __init__(self, handle: DeploymentHandle[Any], settings: Settings) -> None:
        self.record = Record()
        self._catalog: Catalog = make_catalog(settings)
        calls = RayCalls(
            handle,
            book_of(handle.deployment_name),
            self._catalog.full_name,
            Gathered(self.record),
            settings.heartbeat,
        )
        super().__init__(calls, timeout=settings.guard.timeout)
        self._ray = calls

    def full_name(self, model: str | Path, **options: Any) -> str:
        """See `BaseBackend.full_name`."""
        return self._catalog.full_name(model, **options)

    def aliases(self) -> list[str]:
        """The names that its catalog has for models."""
        return [*self._catalog.aliases()]

    def events(self) -> tuple[Event, ...]:
        """See `BaseBackend.events`."""
        self._check_open()
        self._ray.catch_up(PATIENCE)
        return self.record.events()

    def fingerprint(self, request_id: str) -> str:
        """Which model answers a request that is under way; see `Backend.fingerprint`."""
        return self._calls.fingerprint(request_id)

    def aresume(
        self,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        emitted: Sequence[int],
        fingerprint: str,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> AsyncStream:
        """See `Backend.aresume`."""
        name = self._identity(request_id)
        stream = AsyncStream(name, self.cancel)
        self._submit(
            stream.mail.put,
            model,
            prompt,
            timeout,
            name,
            on_progress,
            options,
            emitted=list(emitted),
            fingerprint=fingerprint,
        )
        return stream

    def follow_progress(self, follower: OnProgress) -> Callable[[], None]:
        """Replicas tell nobody of their loads but those who asked for them."""
        return partial(_nothing, follower)


def _nothing(follower: OnProgress) -> None:
    del follower
