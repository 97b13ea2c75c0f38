"""What the guard asks about memory, and the answer for when nobody counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import MemoryRefused


class Room(Protocol):
    """The memory ledger as the guard sees it. Pure bookkeeping, no waiting.

    `idle` are the models that may be evicted, least recently used first.
    """

    def plan_load(
        self, model: str, idle: Sequence[str], request_id: str | None = None
    ) -> tuple[str, ...] | None:
        """Which of `idle` to evict so that `model` fits, and the first request for it.

        Returns:
            The models to evict, possibly none; None when it does not fit now.
        """

    def reserve_load(self, model: str) -> None:
        """Count `model` as in memory from now on, while it loads and after."""

    def release_model(self, model: str) -> None:
        """`model` left memory, or its load failed."""

    def plan_start(
        self, request_id: str, model: str, idle: Sequence[str]
    ) -> tuple[str, ...] | None:
        """As `plan_load`, for the KV cache of a request of a resident model."""

    def reserve_start(self, request_id: str, model: str) -> None:
        """Count the KV cache of this request from now on."""

    def release_start(self, request_id: str) -> None:
        """The request ended; its KV cache is gone."""

    def retract_start(self, request_id: str) -> None:
        """Its KV cache is gone, but it will start again: undo `reserve_start`."""

    def refusal(
        self, model: str, idle: Sequence[str], request_id: str | None = None
    ) -> MemoryRefused:
        """The error, with numbers, for what will not fit even with `idle` evicted."""


class Unbounded:
    """A room in which everything fits."""

    def plan_load(
        self, model: str, idle: Sequence[str], request_id: str | None = None
    ) -> tuple[str, ...] | None:
        return ()

    def reserve_load(self, model: str) -> None: ...

    def release_model(self, model: str) -> None: ...

    def plan_start(
        self, request_id: str, model: str, idle: Sequence[str]
    ) -> tuple[str, ...] | None:
        return ()

    def reserve_start(self, request_id: str, model: str) -> None: ...

    def release_start(self, request_id: str) -> None: ...

    def retract_start(self, request_id: str) -> None: ...

    def refusal(
        self, model: str, idle: Sequence[str], request_id: str | None = None
    ) -> MemoryRefused:
        return MemoryRefused("refused", needed_bytes=0, budget_bytes=0)
