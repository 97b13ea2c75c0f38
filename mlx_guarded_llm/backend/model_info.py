"""Models as callers see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..display.tables import Listing
from ..guard import ModelState
from ..memory.ledger import Ledger
from ..models import ModelFiles
from ..record import phrases
from .quarantine import Quarantine

NAMED = 8  # replicas


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One model: resident, wanted or quarantined.

    Attributes:
        name: means it in every call: the bare one for what a bare call gets, otherwise
            with its options in brackets.
        options: the load options that do not come from the catalog.
        state: "queued", "deferred" (its load waits for others), "loading", "resident",
            "unloading" or "quarantined".
        active: running requests.
        waiting: waiting requests.
        memory_bytes: promised to its weights and KV caches.
        weight_bytes: of its tensors, in memory or not; 0 while its files are unknown.
        idle_seconds: since its last request; None while it has one.
        crashes: how often the engine died of it lately.
        cause: of the last death, in a few words.
        identity: equal for two names of one model: the same files with the same options.
        replicas: what each replica of a cluster says that has it, by the replica's name.
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
    options: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0
    identity: str = ""
    replicas: Mapping[str, ModelInfo] = field(default_factory=dict)

    @property
    def states(self) -> Sequence[str]:
        """Its state, and "pinned" if it is: in words."""
        return [self.state, *["pinned"] * self.pinned]

    @property
    def places(self) -> Sequence[str]:
        """The replicas that have it, and how, in words: the first, and how many more there are."""
        every = sorted(self.replicas.items())
        named = [f"{name} ({', '.join(one.states)})" for name, one in every[:NAMED]]
        return [*named, *[f"{len(every) - NAMED} more"] * (len(every) > NAMED)]


class Models(Listing[ModelInfo]):
    """The models of a backend."""

    head = ("model", "state", "running", "waiting", "memory", "context", "idle")
    numbers = (2, 3, 4, 5, 6)
    nothing = "No model is resident or wanted."

    def cells(self, item: ModelInfo) -> Sequence[str]:
        """See `Listing.cells`."""
        state = [*item.states]
        if item.crashes:
            often = "1 crash" if item.crashes == 1 else f"{item.crashes} crashes"
            state.append(f"{often} ({item.cause})")
        if item.replicas:
            state.append(f"at {phrases.listing(item.places)}")
        return (
            item.name,
            ", ".join(state),
            str(item.active),
            str(item.waiting),
            phrases.size(item.memory_bytes),
            f"{item.context_window:,}" if item.context_window else "",
            "" if item.idle_seconds is None else phrases.seconds(item.idle_seconds),
        )


def model_infos(
    states: list[ModelState],
    stage: Callable[[ModelState], str],
    files: Mapping[str, ModelFiles],
    ledger: Ledger | None,
    now: float,
    quarantine: Quarantine,
) -> list[ModelInfo]:
    """What callers see of the guard's models and of those in quarantine. Names are keys.

    Args:
        states: of the guard.
        stage: of the guard.
        files: those that are known, by model.
        ledger: counts their memory, once there is one.
        now: the time in seconds.
        quarantine: knows what crashed.
    """
    infos = []
    held = quarantine.held()
    unwanted = set(held) - {state.name for state in states}
    for state in [*states, *map(ModelState, unwanted)]:
        known = files.get(state.name)
        infos.append(
            ModelInfo(
                name=state.name,
                state="quarantined" if state.name in held else stage(state),
                pinned=state.pinned,
                active=len(state.active),
                waiting=len(state.waiting),
                memory_bytes=ledger.model_bytes(state.name) if ledger else 0,
                context_window=known.context_window if known else 0,
                fingerprint=known.fingerprint if known else "",
                idle_seconds=now - state.last_used if state.idle else None,
                crashes=quarantine.deaths(state.name),
                cause=quarantine.cause(state.name),
                options=dict(known.spec.given or ()) if known else {},
                weight_bytes=known.weight_bytes if known else 0,
            )
        )
    return infos
