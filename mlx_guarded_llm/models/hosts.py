"""The machines over which one model is spread, and how `hosts=` names them.

It is one of these, or a list of addresses in Python or TOML:

    local:2                        two processes of this machine, each with a GPU of its own
                                   where MLX uses CUDA and has so many; else for trials
    10.0.0.1,10.0.0.2              these machines, by their addresses; the first is this one
    /etc/mlx/hosts.json            a hostfile, as `mlx.launch --hostfile` reads it
    pipeline:10.0.0.1,10.0.0.2     by layers; "tensor:" splits every layer instead
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import InvalidRequest
from ..json_values import byte_count, plain_scalar, shown
from .files import UnreadableFile, parse, read_bytes
from .gpus import visible_gpus

Sharding = Literal["tensor", "pipeline"]
Network = Literal["ring", "jaccl", "jaccl-ring", "nccl"]

HERE = "127.0.0.1"
MOST = 64  # ranks
_PROCESSES = "local:"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_SSH = re.compile(r"(?!-)[A-Za-z0-9_.:%@-]{1,255}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FORMS = 'must be "local:2", addresses such as "10.0.0.1,10.0.0.2", or a hostfile (.json)'


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where one rank runs.

    Attributes:
        ssh: what `ssh` calls the machine.
        ips: its addresses, at which the other ranks reach it.
        rdma: for JACCL, its device towards each rank; None towards itself.
        python: the interpreter there; "" for the path of the one that runs here.
        memory_budget: bytes that models may use there; None for its device's default. On the
            first machine the backend's own counts.
        gpu: which of the machine's visible NVIDIA GPUs it computes on; None leaves that to MLX.
    """

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[Any, ...] = ()
    python: str = ""
    memory_budget: int | None = None
    gpu: int | None = None


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The ranks of a group. The first is the engine's own process.

    Attributes:
        network: what MLX calls the distributed backend, or "jaccl-ring".
        sharding: how models are split; None takes "tensor" where the architecture can.
        variables: (name, value) of variables that every rank gets.
    """

    hosts: tuple[Host, ...]
    network: Network = "ring"
    sharding: Sharding | None = None
    variables: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.hosts)

    def is_here(self, host: Host) -> bool:
        """Whether a rank runs on this machine, which is that of the first."""
        return host.ssh in (*_LOCAL, self.hosts[0].ssh)

    def is_counted(self, host: Host) -> bool:
        """Whether the memory of a rank is that of the first: on its machine, and its GPU."""
        return self.is_here(host) and host.gpu == self.hosts[0].gpu

    @property
    def counted(self) -> int:
        """How many ranks take of the memory that the first one's ledger counts."""
        return sum(map(self.is_counted, self.hosts))

    def __str__(self) -> str:
        return ", ".join(host.ssh for host in self.hosts)


def hosts_text(value: object, base: Path | None = None) -> str | None:
    """What a caller gave as `hosts`, as one text; see the forms above.

    Args:
        value: a text, a hostfile's path, a list of addresses, or None.
        base: the folder from which a relative path counts; None for the current one.

    Raises:
        InvalidRequest: it is none of these.
    """
    if value is None:
        return None
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, (list, tuple)):
        value = ",".join(str(plain_scalar(item, "hosts")) for item in value)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"hosts is {shown(value)}; it {_FORMS}.")
    text = str(plain_scalar(value, "hosts"))
    sharding, rest = _split(text)
    if rest.endswith(".json"):
        rest = str((base or Path()).absolute() / Path(rest).expanduser())
    else:
        _read_list(text, rest)
    return f"{sharding}:{rest}" if sharding else rest


def read_hosts(text: str) -> Hosts:
    """The group that a text means; a hostfile is read.

    Raises:
        InvalidRequest: the text or the file is wrong.
    """
    sharding, rest = _split(text)
    if not rest.endswith(".json"):
        hosts = _read_list(text, rest)
        if rest.startswith(_PROCESSES) and len(visible_gpus()) >= len(hosts):
            # NCCL does not send from one rank to another, which a pipeline needs.
            network: Network = "ring" if sharding == "pipeline" else "nccl"
            return Hosts(hosts=_with_gpus(hosts), network=network, sharding=sharding)
        return Hosts(hosts=hosts, sharding=sharding)
    try:
        file = parse(Path(rest), read_bytes(Path(rest)))
    except UnreadableFile as error:
        hint = "`mlx.distributed_config` writes a hostfile."
        raise InvalidRequest(f"hosts: {error}.", hint=hint) from None
    return _read_file(rest, file if isinstance(file, dict) else {"hosts": file}, sharding)


def _split(text: str) -> tuple[Sharding | None, str]:
    start, colon, rest = text.partition(":")
    for sharding in get_args(Sharding):
        if colon and start == sharding:
            return sharding, rest
    return None, text


def _read_list(text: str, rest: str) -> tuple[Host, ...]:
    if rest.startswith(_PROCESSES):
        count = rest.removeprefix(_PROCESSES)
        if not count.isascii() or not count.isdigit() or not 2 <= int(count) <= MOST:
            raise InvalidRequest(f"hosts is {text!r}; local: is followed by 2 to {MOST}.")
        return (Host(ssh=HERE, ips=(HERE,)),) * int(count)
    addresses = [HERE if part == "localhost" else part for part in map(str.strip, rest.split(","))]
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidRequest(
                f"hosts is {text!r}, and {address!r} is no IP address; it {_FORMS}.",
                hint="A hostfile has the addresses of machines that ssh knows by name.",
            ) from None
    return _checked(text, tuple(Host(ssh=address, ips=(address,)) for address in addresses))


def _read_file(name: str, file: dict[str, Any], sharding: Sharding | None) -> Hosts:
    network: Any = file.get("backend") or "ring"
    if network not in get_args(Network):
        raise InvalidRequest(
            f"hosts: {name} has the backend {shown(network)}; it must be one of "
            f"{', '.join(get_args(Network))}."
        )
    entries = file.get("hosts")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequest(f"hosts: {name} has no list of hosts.")
    hosts = _checked(name, tuple(_read_host(name, entry) for entry in entries))
    if network == "nccl":
        if sharding == "pipeline":
            raise InvalidRequest(
                f"hosts: {name} has the backend 'nccl', which cannot send from layer to layer.",
                hint='Write "tensor:" before it, or take the backend "ring".',
            )
        hosts = _with_gpus(hosts)
    envs = file.get("envs") or []
    pairs = [str(env).partition("=") for env in envs] if isinstance(envs, list) else [("", "", "")]
    if wrong := [key for key, _, _ in pairs if not _VARIABLE.fullmatch(key)]:
        raise InvalidRequest(f"hosts: {name} has {shown(wrong[0])} in envs; write NAME=value.")
    group = Hosts(
        hosts=hosts,
        network=network,
        sharding=sharding,
        variables=tuple((key, value) for key, _, value in pairs),
    )
    if network == "ring" and not all(host.ips for host in hosts):
        raise InvalidRequest(f"hosts: {name} has hosts without ips, which the ring needs.")
    if network == "nccl" and not hosts[0].ips:
        raise InvalidRequest(f"hosts: {name} has no ips of its first host, which NCCL needs.")
    if network in ("jaccl", "jaccl-ring"):
        alone = all(len(host.rdma) == len(hosts) and host.rdma[i] is None
                    for i, host in enumerate(hosts))  # fmt: skip
        if not alone or not hosts[0].ips:
            raise InvalidRequest(
                f"hosts: {name} needs ips of its first host, and for each host as many rdma "
                "devices as there are hosts, with null for itself.",
                hint="`mlx.distributed_config --backend jaccl` writes such a file.",
            )
    return group


def _read_host(name: str, entry: dict[str, Any]) -> Host:
    ssh, python = entry.get("ssh"), entry.get("python") or ""
    ips, rdma = entry.get("ips") or [], entry.get("rdma") or []
    texts = isinstance(ips, Sequence) and all(isinstance(ip, str) for ip in ips)
    budget = entry.get("memory_budget")
    nbytes = byte_count(budget)
    if budget is not None and (nbytes is None or nbytes < 1):
        raise InvalidRequest(
            f"hosts: {name} has the memory_budget {shown(budget)}.", hint='Write "12GB".'
        )
    if not (isinstance(ssh, str) and isinstance(python, str) and isinstance(rdma, list) and texts):
        raise InvalidRequest(
            f"hosts: {name} has the host {shown(entry)}.",
            hint='Write {"ssh": "name", "ips": ["10.0.0.1"]}.',
        )
    devices = tuple(tuple(each) if isinstance(each, list) else each for each in rdma)
    return Host(ssh=ssh, ips=tuple(ips), rdma=devices, python=python, memory_budget=nbytes)


def _with_gpus(hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    """Give each rank the next GPU of its machine."""
    before: Counter[str] = Counter()
    given = []
    for host in hosts:
        given.append(replace(host, gpu=before[host.ssh]))
        before[host.ssh] += 1
    return tuple(given)


def _checked(name: str, hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    if not 2 <= len(hosts) <= MOST:
        raise InvalidRequest(
            f"hosts: {name} has {len(hosts)} hosts; it must have 2 to {MOST}.",
            hint="Leave hosts out for a model on one machine.",
        )
    for host in hosts:
        if not _SSH.fullmatch(host.ssh):
            raise InvalidRequest(f"hosts: {name} has the host {shown(host.ssh)}, which is no name.")
    return hosts
