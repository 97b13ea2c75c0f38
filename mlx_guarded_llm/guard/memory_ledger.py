"""What the guard asks about memory, and a ledger in which everything fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import MemoryRefused


class MemoryLedger(Protocol):
    """The memory ledger as the guard sees it. It only counts and never waits.

    `idle` are the models that may be evicted, least recently used first.
    """

    def copy(self) -> MemoryLedger:
        """Another one with the same entries, to look ahead with."""

    def plan_load(
        self, model: str, idle: Sequence[str], request_id: str | None = None
    ) -> tuple[str, ...] | None:
        """Which of `idle` to evict so that `model` fits, with the first request for it.

        Returns:
            The models to evict, possibly none; None when it does not fit now.
        """

    def reserve_load(self, model: str) -> None:
        """Count `model` as in memory from now on, during its load and after it."""

    def release_model(self, model: str) -> None:
        """`model` is out of memory, or its load failed."""

    def plan_start(
        self, request_id: str, model: str, idle: Sequence[str]
    ) -> tuple[str, ...] | None:
        """As `plan_load`, for the KV cache of a request to a resident model."""

    def reserve_start(self, request_id: str, model: str) -> None:
        """Count the KV cache of this request from now on."""

    def release_start(self, request_id: str) -> None:
        """The request has finished; its KV cache is gone."""

    def retract_start(self, request_id: str) -> None:
        """The KV cache is gone but the request will start again: undo `reserve_start`."""

    def refusal(
        self, model: str, idle: Sequence[str], request_id: str | None = None
    ) -> MemoryRefused:
        """The error for what does not fit even with `idle` evicted, with the numbers."""


class UnlimitedMemory:
    """A ledger in which everything fits."""

    def copy(self) -> UnlimitedMemory:
        return self

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
