"""The processes of the other ranks, as rank 0 uses them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NoReturn, Protocol

from ...errors import InvalidRequest
from ...models.hosts import Hosts
from .orders import Done, Order


class Ranks(Protocol):
    """The processes of the other ranks. There is one group of them in an engine's life."""

    def ready(self, hosts: Hosts) -> Sequence[int]:
        """Start them, unless they run, and wait until all do. From any thread.

        Returns:
            The bytes that each rank may use; that of rank 0 means nothing.

        Raises:
            HostUnavailable: one cannot be started, or not in time. The next call tries again.
            InvalidRequest: other hosts are a group already.
        """

    def tell(self, *orders: Order) -> None:
        """Give all of them an order, or each its own, in the order of their ranks."""

    def answers(self, seconds: float | None) -> list[Done]:
        """The answer of each to the last order.

        Raises:
            HostUnavailable: one did not answer in this many seconds, or is gone.
        """

    def joining(self) -> AbstractContextManager[None]:
        """MLX connects them within this: from now on the end of one is the end of the engine."""

    def await_loss(self, seconds: float) -> None:
        """Wait until the end of a rank is noticed, if one has ended: it says more than MLX."""

    def end(self) -> None:
        """End them all."""


def no_ranks(hosts: Hosts) -> NoReturn:
    """In place of `Ranks.ready`, where the engine has no process of its own.

    Raises:
        InvalidRequest: always.
    """
    raise InvalidRequest(
        f'hosts is {hosts}, which isolation="thread" does not allow.',
        hint='Use isolation="process": the end of another machine would end this program.',
    )
