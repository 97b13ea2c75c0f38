"""What `hosts` may be, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Catalog
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.models import gpus as gpus_module
from mlx_guarded_llm.models.hosts import Host, Hosts, hosts_text, read_hosts
from mlx_guarded_llm.models.naming import split_options, with_options
from mlx_guarded_llm.testing.tiny import make_tiny_model

PAIR = [{"ssh": "a", "ips": ["10.0.0.1"]}, {"ssh": "b", "ips": ["10.0.0.2", "10.1.0.2"]}]
DEVICES = [{**PAIR[0], "rdma": [None, "rdma_en2"]}, {**PAIR[1], "rdma": [["rdma_en3"], None]}]


def write(folder: Path, content: Any) -> str:
    (folder / "hosts.json").write_text(json.dumps(content))
    return str(folder / "hosts.json")


def test_processes_of_this_machine() -> None:
    group = read_hosts("local:3")
    assert (len(group), group.counted, group.network, group.sharding) == (3, 3, "ring", None)
    assert all(map(group.is_here, group.hosts))
    assert str(group) == "127.0.0.1, 127.0.0.1, 127.0.0.1"


def test_addresses() -> None:
    assert hosts_text(["10.0.0.1", "10.0.0.2"]) == hosts_text("10.0.0.1,10.0.0.2")
    group = read_hosts("pipeline:10.0.0.1,10.0.0.2,10.0.0.1")
    assert group.sharding == "pipeline" and group.counted == 2
    assert group.hosts[1] == Host(ssh="10.0.0.2", ips=("10.0.0.2",))
    assert read_hosts("localhost,127.0.0.1").hosts == read_hosts("local:2").hosts


def test_a_hostfile(tmp_path: Path) -> None:
    bare = read_hosts(write(tmp_path, PAIR))
    assert bare.hosts[1].ips == ("10.0.0.2", "10.1.0.2") and bare.counted == 1
    file = {"backend": "jaccl", "envs": ["A=1=2"], "hosts": DEVICES}
    group = read_hosts(f"tensor:{write(tmp_path, file)}")
    assert (group.network, group.sharding, group.variables) == ("jaccl", "tensor", (("A", "1=2"),))
    assert group.hosts[1].rdma == (("rdma_en3",), None)
    budgets = read_hosts(write(tmp_path, [PAIR[0], {**PAIR[1], "memory_budget": "1.5 GiB"}]))
    assert [host.memory_budget for host in budgets.hosts] == [None, 3 * 2**29]


def test_each_rank_has_a_gpu_of_its_own(tmp_path: Path) -> None:
    ranks = [PAIR[0], PAIR[1], {"ssh": "a"}]
    file = write(tmp_path, {"backend": "nccl", "hosts": ranks})
    group = read_hosts(file)
    assert [(host.ssh, host.gpu) for host in group.hosts] == [("a", 0), ("b", 0), ("a", 1)]
    assert group.counted == 1  # the other rank of its machine has memory of its own
    with pytest.raises(InvalidRequest, match="cannot send"):
        read_hosts(f"pipeline:{file}")


@pytest.mark.parametrize(
    ("visible", "hosts", "network", "gpus"),
    [
        ("4,5", "local:2", "nccl", [0, 1]),
        ("4,5,6", "tensor:local:2", "nccl", [0, 1]),
        ("4,5", "pipeline:local:2", "ring", [0, 1]),
        ("4", "local:2", "ring", [None, None]),
        ("", "local:2", "ring", [None, None]),
        ("4,5", "10.0.0.1,10.0.0.1", "ring", [None, None]),
    ],
)
def test_processes_of_this_machine_have_gpus_where_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, visible: str, hosts: str, network: str, gpus: list[int | None]
) -> None:
    monkeypatch.setattr(gpus_module, "installed", lambda name: True)
    monkeypatch.setenv(gpus_module.VARIABLE, visible)
    group = read_hosts(hosts)
    assert (group.network, [host.gpu for host in group.hosts]) == (network, gpus)
    assert group.counted == (2 if gpus[0] is None else 1)


def test_a_relative_path_counts_from_the_file_that_names_it(tmp_path: Path) -> None:
    assert hosts_text("hosts.json", tmp_path) == str(tmp_path / "hosts.json")
    assert hosts_text("pipeline:hosts.json", tmp_path) == f"pipeline:{tmp_path}/hosts.json"
    assert hosts_text(None) is None


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        ("local:1", "2 to 64"),
        ("local:65", "2 to 64"),
        ("local:two", "2 to 64"),
        ("10.0.0.1", "has 1 hosts"),
        ("10.0.0.1,example.org", "'example.org' is no IP address"),
        ("", "must be"),
        (5, "must be"),
        (["10.0.0.1", None], "no IP address"),
    ],
)
def test_what_is_none_is_refused(hosts: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        hosts_text(hosts)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"backend": "mpi", "hosts": PAIR}, "one of ring, jaccl, jaccl-ring, nccl"),
        ({"backend": "ring", "hosts": [PAIR[0], {"ssh": "b"}]}, "without ips"),
        ({"backend": "jaccl", "hosts": PAIR}, "as many rdma"),
        ({"backend": "nccl", "hosts": [{"ssh": "a"}, PAIR[1]]}, "no ips of its first host"),
        ({"backend": "jaccl", "hosts": [DEVICES[0], DEVICES[0]]}, "null for itself"),
        ({"hosts": "b"}, "no list of hosts"),
        ([PAIR[0]], "has 1 hosts"),
        ([PAIR[0], {"ips": ["10.0.0.2"]}], "has the host"),
        ([PAIR[0], {"ssh": "-oProxyCommand=x", "ips": ["10.0.0.2"]}], "is no name"),
        ([PAIR[0], {"ssh": "b; rm", "ips": ["10.0.0.2"]}], "is no name"),
        ([PAIR[0], {**PAIR[1], "memory_budget": "much"}], "memory_budget 'much'"),
        ([PAIR[0], {**PAIR[1], "memory_budget": 0}], "memory_budget 0"),
        ({"hosts": PAIR, "envs": ["A B=1"]}, "in envs"),
        ({"hosts": PAIR, "envs": "A=1"}, "in envs"),
    ],
)
def test_a_wrong_hostfile_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_hosts(write(tmp_path, content))


def test_a_missing_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="missing"):
        read_hosts(str(tmp_path / "hosts.json"))


def test_names_carry_hosts(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    name = with_options("m", {"hosts": ["10.0.0.1", "10.0.0.2"]})
    assert split_options(name) == ("m", {"hosts": "10.0.0.1,10.0.0.2"})
    catalog = Catalog(cache_dir=tmp_path)
    spec = catalog.resolve(folder, hosts="local:2")
    assert catalog.resolve(spec.full_name) == spec
    files = catalog.ensure(spec)
    assert files.hosts == Hosts(hosts=(Host(ssh="127.0.0.1", ips=("127.0.0.1",)),) * 2)
    alone = catalog.ensure(catalog.resolve(folder))
    # The same model, which takes something else of this machine.
    assert files.fingerprint == alone.fingerprint
    assert files.load_fingerprint != alone.load_fingerprint
