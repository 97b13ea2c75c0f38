"""What each rank is told of its group: the variables that `mlx.launch` sets."""

from __future__ import annotations

import json
import socket

import pytest

from mlx_guarded_llm.engine.protocol import EngineOptions
from mlx_guarded_llm.engine.ranks.forms import make_forms
from mlx_guarded_llm.engine.ranks.reach import Listening, free_ports, reach
from mlx_guarded_llm.errors import HostUnavailable
from mlx_guarded_llm.models.hosts import Host, Hosts, read_hosts

OPTIONS = EngineOptions()


def test_a_ring() -> None:
    forms = make_forms(read_hosts("local:3"), OPTIONS, [0, 5, 6])
    assert [form.variables["MLX_RANK"] for form in forms] == ["0", "1", "2"]
    assert [form.options.memory_budget for form in forms] == [0, 5, 6]
    addresses = [form.listen for form in forms]
    assert len({address for each in addresses for address in each}) == 3
    assert [form.reach for form in forms] == [*addresses[1:], addresses[0]]
    expected = [[f"{ip}:{port}" for ip, port in each] for each in addresses]
    assert all(json.loads(form.files["MLX_HOSTFILE"]) == expected for form in forms)
    assert all(form.counted for form in forms)


@pytest.mark.parametrize("network", ["jaccl", "jaccl-ring"])
def test_jaccl(network: str) -> None:
    hosts = Hosts(
        hosts=(
            Host(ssh="a", ips=("127.0.0.1",), rdma=(None, "rdma_en2")),
            Host(ssh="b", rdma=("rdma_en3", None)),
        ),
        network=network,  # type: ignore[arg-type]  # it is one
        variables=(("A", "1"),),
    )
    first, second = make_forms(hosts, OPTIONS, [0, 5])
    assert second.variables["A"] == "1" and second.variables["MLX_RANK"] == "1"
    assert second.variables["MLX_JACCL_COORDINATOR"].startswith("127.0.0.1:")
    assert ("MLX_JACCL_RING" in second.variables) == (network == "jaccl-ring")
    assert json.loads(second.files["MLX_IBV_DEVICES"]) == [[None, "rdma_en2"], ["rdma_en3", None]]
    assert (first.counted, second.counted, second.listen) == (True, False, ())


def test_nccl() -> None:
    hosts = Hosts(
        hosts=(Host(ssh="a", ips=("127.0.0.1",), gpu=0), Host(ssh="a", gpu=1)), network="nccl"
    )
    first, second = make_forms(hosts, OPTIONS, [0, 5])
    ((ip, port),) = first.listen
    assert second.reach == first.listen and (second.listen, first.reach) == ((), ())
    expected = {"NCCL_HOST_IP": ip, "NCCL_PORT": str(port), "MLX_WORLD_SIZE": "2"}
    assert first.variables == {**expected, "MLX_RANK": "0"}
    assert second.variables == {**expected, "MLX_RANK": "1"}
    assert (first.counted, second.counted) == (True, False)  # each GPU has its own memory


def test_a_rank_is_reached_while_it_listens() -> None:
    address = ("127.0.0.1", free_ports("127.0.0.1", 1)[0])
    with pytest.raises(HostUnavailable, match=rf"127\.0\.0\.1:{address[1]} cannot be reached"):
        reach([address])
    listening = Listening([address])
    reach([address])
    with pytest.raises(HostUnavailable, match="cannot be listened at"):
        Listening([address])
    listening.close()
    with socket.create_server(address):
        pass  # the address is free again at once


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(HostUnavailable, match=r"192\.0\.2\.1:1234 cannot be listened at"):
        Listening([("192.0.2.1", 1234)])
