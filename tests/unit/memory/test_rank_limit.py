"""The tightest of the ranks elsewhere."""

from __future__ import annotations

from dataclasses import replace

from mlx_guarded_llm.memory.rank_limit import RankLimit, rank_budgets, tightest
from mlx_guarded_llm.models.hosts import Host, Hosts, read_hosts


def test_ranks_of_one_machine_share_what_it_has() -> None:
    hosts = read_hosts("10.0.0.1,10.0.0.2,10.0.0.2,10.0.0.3")
    budgets = rank_budgets(hosts, [0, 100, 100, 60])
    assert budgets == [0, 50, 50, 60]
    assert tightest(hosts, budgets) == RankLimit("rank 1 on 10.0.0.2", 50)


def test_a_hostfile_says_what_a_machine_has() -> None:
    hosts = read_hosts("10.0.0.1,10.0.0.2,10.0.0.3")
    first, second, third = hosts.hosts
    hosts = replace(hosts, hosts=(first, second, replace(third, memory_budget=40)))
    limit = tightest(hosts, rank_budgets(hosts, [0, 100, 100]))
    assert limit == RankLimit("rank 2 on 10.0.0.3", 40)


def test_the_ledger_has_the_ranks_of_its_own_machine() -> None:
    assert tightest(read_hosts("local:3"), [0, 1, 1]) is None
    hosts = read_hosts("10.0.0.1,10.0.0.1,10.0.0.2")
    limit = tightest(hosts, [0, 1, 9])
    assert limit == RankLimit("rank 2 on 10.0.0.2", 9)


def test_each_gpu_has_memory_of_its_own() -> None:
    here = Host(ssh="a", ips=("10.0.0.1",), gpu=0)
    hosts = Hosts(hosts=(here, replace(here, gpu=1)), network="nccl")
    budgets = rank_budgets(hosts, [0, 100])
    assert budgets == [0, 100]
    assert tightest(hosts, budgets) == RankLimit("rank 1 on a", 100)
