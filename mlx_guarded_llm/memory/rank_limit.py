"""What a model that is spread may take of the other machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..models.hosts import Host, Hosts


@dataclass(frozen=True)
class RankLimit:
    """The tightest of the ranks whose memory the ledger does not count as its own.

    Every rank takes as much for a model and its KV caches as any other. So what fits there fits
    at all of them.

    Attributes:
        rank: its name, such as "rank 1 on 10.0.0.2".
        budget_bytes: that it may use: its part of what its device has.
    """

    rank: str
    budget_bytes: int


def rank_budgets(hosts: Hosts, device_bytes: Sequence[int]) -> list[int]:
    """The bytes that each rank may use.

    Args:
        device_bytes: the default budget of each rank's device.
    """
    sharing = Counter(map(_device, hosts.hosts))
    return [
        (host.memory_budget or nbytes) // sharing[_device(host)]
        for host, nbytes in zip(hosts.hosts, device_bytes, strict=True)
    ]


def tightest(hosts: Hosts, budgets: Sequence[int]) -> RankLimit | None:
    """The limit for a group; None if the first machine, or GPU, has all ranks.

    Args:
        budgets: what `rank_budgets` returned.
    """
    others = [
        (nbytes, rank)
        for rank, (host, nbytes) in enumerate(zip(hosts.hosts, budgets, strict=True))
        if not hosts.is_counted(host)
    ]
    if not others:
        return None
    nbytes, rank = min(others)
    return RankLimit(f"rank {rank} on {hosts.hosts[rank].ssh}", nbytes)


def _device(host: Host) -> tuple[str, int | None]:
    return host.ssh, host.gpu
