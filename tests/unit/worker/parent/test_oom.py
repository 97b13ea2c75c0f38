from __future__ import annotations

from pathlib import Path

import pytest

from mlx_guarded_llm.worker.parent.oom import oom_kills

VMSTAT = "pgfault 12\noom_kill 7\noom_kill_something 9\n"


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_machines_count(tmp_path: Path) -> None:
    assert oom_kills(lay(tmp_path, {"proc/vmstat": VMSTAT})) == 7


def test_the_groups_own_count_comes_first(tmp_path: Path) -> None:
    files = {
        "proc/vmstat": VMSTAT,
        "proc/self/cgroup": "0::/user.slice/app\n",
        "sys/fs/cgroup/user.slice/app/memory.events": "low 0\noom 3\noom_kill 2\n",
    }
    assert oom_kills(lay(tmp_path, files)) == 2


def test_the_older_kind_of_group(tmp_path: Path) -> None:
    files = {
        "proc/vmstat": VMSTAT,
        "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/y\n0::/\n",
        "sys/fs/cgroup/memory/y/memory.oom_control": "oom_kill_disable 0\noom_kill 1\n",
    }
    assert oom_kills(lay(tmp_path, files)) == 1


@pytest.mark.parametrize("group", ["", "nonsense", "0::/gone\n", "\x00"])
def test_without_a_group_of_ones_own_the_machines(tmp_path: Path, group: str) -> None:
    files = {"proc/vmstat": VMSTAT, "proc/self/cgroup": group}
    assert oom_kills(lay(tmp_path, files)) == 7


def test_where_it_is_not_known_it_never_grows(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) == 0


def test_on_this_machine_it_does_not_go_back() -> None:
    before = oom_kills()
    assert 0 <= before <= oom_kills()
