"""Jobs as the dispatcher keeps them, and models as callers see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import GuardedLLMError
from ..guard import ModelState
from ..memory.ledger import Ledger
from ..models import ModelFiles, ModelSpec
from ..models.spec import OnProgress
from .quarantine import Quarantine


@dataclass(eq=False, kw_only=True)
class Job:
    """A load, unload or foreign work that somebody waits for."""

    id: str
    kind: Literal["load", "unload", "run"]
    future: Future[Any]
    spec: ModelSpec | None = None
    key: str = ""
    pin: bool = False
    fn: Callable[[], Any] | None = None
    on_progress: OnProgress | None = None
    value: Any = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        # So that asyncio, whose waiter was cancelled, cannot cancel it under us.
        self.future.set_running_or_notify_cancel()

    def settle(self, error: GuardedLLMError | None, *, ran: bool) -> None:
        """It is over. A foreign function's own exception comes before ours."""
        if self.future.done():
            return
        reason = self.error or error
        if reason is not None:
            self.future.set_exception(reason)
        else:
            self.future.set_result(ran if self.kind == "unload" else self.value)

    def fail(self, error: GuardedLLMError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One model: resident, wanted or quarantined.

    Attributes:
        state: "resident", "loading", "unloading", "queued" or "quarantined".
        active: running requests.
        waiting: waiting requests.
        memory_bytes: promised to its weights and KV caches.
        idle_seconds: since its last request; None while it has one.
        crashes: how often the engine died of it of late.
        cause: of the last time, in a few words.
    """

    name: str
    state: str
    pinned: bool
    active: int
    waiting: int
    memory_bytes: int
    context_window: int
    fingerprint: str
    idle_seconds: float | None
    crashes: int = 0
    cause: str = ""


def model_infos(
    states: list[ModelState],
    files: Mapping[str, ModelFiles],
    ledger: Ledger | None,
    now: float,
    quarantine: Quarantine,
) -> list[ModelInfo]:
    """What callers see of the guard's models, and of those in quarantine."""
    infos = []
    held = quarantine.held()
    unwanted = set(held) - {state.name for state in states}
    for state in [*states, *map(ModelState, unwanted)]:
        known = files.get(state.name)
        infos.append(
            ModelInfo(
                name=state.name,
                state="quarantined" if state.name in held else _state(state),
                pinned=state.pinned,
                active=len(state.active),
                waiting=len(state.waiting),
                memory_bytes=ledger.model_bytes(state.name) if ledger else 0,
                context_window=known.context_window if known else 0,
                fingerprint=known.fingerprint if known else "",
                idle_seconds=now - state.last_used if state.idle else None,
                crashes=quarantine.deaths(state.name),
                cause=quarantine.cause(state.name),
            )
        )
    return sorted(infos, key=lambda info: info.name)


def _state(model: ModelState) -> str:
    if model.resident:
        return "unloading" if model.unload else "resident"
    return "loading" if model.load else "queued"
