"""What each rank needs to know of its group, in the variables that MLX reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from ...models.hosts import Hosts
from ..protocol import EngineOptions
from .orders import Form
from .reach import Address, free_ports


def make_forms(hosts: Hosts, options: EngineOptions, budgets: Sequence[int]) -> list[Form]:
    """The first order of each rank, with the variables that `mlx.launch` would set.

    The ports are free on this machine; the others are expected to have them free too.

    Args:
        budgets: the bytes that each rank may use.
    """
    variables = dict(hosts.variables)
    if hosts.network == "ring":
        addresses = _ring_addresses(hosts)
        ring = [[f"{ip}:{port}" for ip, port in each] for each in addresses]
        files = {"MLX_HOSTFILE": json.dumps(ring)}
    else:
        addresses = [() for _ in hosts.hosts]
        files = {"MLX_IBV_DEVICES": json.dumps([host.rdma for host in hosts.hosts])}
        first = hosts.hosts[0].ips[0]
        variables["MLX_JACCL_COORDINATOR"] = f"{first}:{free_ports(first, 1)[0]}"
        if hosts.network == "jaccl-ring":
            variables["MLX_JACCL_RING"] = "1"
    return [
        Form(
            rank=rank,
            options=replace(options, memory_budget=budgets[rank]),
            network=hosts.network,
            variables={**variables, "MLX_RANK": str(rank)},
            files=files,
            listen=addresses[rank],
            reach=addresses[(rank + 1) % len(hosts)],
            here=hosts.is_here(host),
        )
        for rank, host in enumerate(hosts.hosts)
    ]


def _ring_addresses(hosts: Hosts) -> list[tuple[Address, ...]]:
    """An address for each ip of each rank, at ports that are free on this machine."""
    ips = [host.ips for host in hosts.hosts]
    ports = iter(free_ports(ips[0][0], sum(map(len, ips))))
    return [tuple((ip, next(ports)) for ip in each) for each in ips]
