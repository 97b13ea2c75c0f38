"""What each rank needs to know of its group, in the variables that MLX reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...models.hosts import Hosts
from ..protocol import EngineOptions
from .orders import Form
from .reach import Address, free_ports


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What MLX's variables say of a network, and which addresses of it can be tried.

    Attributes:
        listen: the addresses of each rank.
        reach: those to which it connects.
    """

    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    listen: list[tuple[Address, ...]]
    reach: list[tuple[Address, ...]]


def make_forms(hosts: Hosts, options: EngineOptions, budgets: Sequence[int]) -> list[Form]:
    """The first order of each rank, with the variables that `mlx.launch` would set.

    The ports are free on this machine; the others are expected to have them free too.

    Args:
        budgets: the bytes that each rank may use.
    """
    make = {"ring": _ring, "nccl": _nccl}.get(hosts.network, _jaccl)
    network = make(hosts)
    return [
        Form(
            rank=rank,
            options=replace(options, memory_budget=budgets[rank]),
            network=hosts.network,
            variables={**dict(hosts.variables), **network.variables, "MLX_RANK": str(rank)},
            files=network.files,
            listen=network.listen[rank],
            reach=network.reach[rank],
            counted=hosts.is_counted(host),
        )
        for rank, host in enumerate(hosts.hosts)
    ]


def _ring(hosts: Hosts) -> _Network:
    """An address for each ip of each rank; each rank connects to the next."""
    ips = [host.ips for host in hosts.hosts]
    ports = iter(free_ports(ips[0][0], sum(map(len, ips))))
    listen = [tuple((ip, next(ports)) for ip in each) for each in ips]
    ring = [[f"{ip}:{port}" for ip, port in each] for each in listen]
    return _Network(
        files={"MLX_HOSTFILE": json.dumps(ring)}, listen=listen, reach=[*listen[1:], listen[0]]
    )


def _nccl(hosts: Hosts) -> _Network:
    """All others connect to the first, which tells them how NCCL goes on."""
    ip, others = hosts.hosts[0].ips[0], len(hosts) - 1
    port = free_ports(ip, 1)[0]
    first: tuple[Address, ...] = ((ip, port),)
    variables = {"NCCL_HOST_IP": ip, "NCCL_PORT": str(port), "MLX_WORLD_SIZE": str(len(hosts))}
    return _Network(
        variables=variables, listen=[first, *[()] * others], reach=[(), *[first] * others]
    )


def _jaccl(hosts: Hosts) -> _Network:
    first = hosts.hosts[0].ips[0]
    variables = {"MLX_JACCL_COORDINATOR": f"{first}:{free_ports(first, 1)[0]}"}
    if hosts.network == "jaccl-ring":
        variables["MLX_JACCL_RING"] = "1"
    return _Network(
        variables=variables,
        files={"MLX_IBV_DEVICES": json.dumps([host.rdma for host in hosts.hosts])},
        listen=[()] * len(hosts),
        reach=[()] * len(hosts),
    )
