"""The ranks of a worker that stands still while MLX connects it."""

from __future__ import annotations

import subprocess

from mlx_guarded_llm.worker.parent.joining import JoiningRanks


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def test_who_is_lost_is_named_though_nobody_has_waited_for_it() -> None:
    first, second = sleeper(), sleeper()
    ranks = JoiningRanks()
    assert not ranks and ranks.lost() == ""
    ranks.watch([(first.pid, "rank 1 on a"), (second.pid, "rank 2 on b")])
    assert ranks and ranks.lost() == ""
    second.kill()
    while not ranks.lost():  # a zombie: its parent is the worker, which stands still
        pass
    assert ranks.lost().startswith("rank 2 on b,")
    second.wait()
    assert ranks.lost().startswith("rank 2 on b,")
    ranks.end()
    assert first.wait(60) == -9 and not ranks


def test_one_that_was_gone_before_is_lost() -> None:
    gone = sleeper()
    gone.kill()
    gone.wait()
    ranks = JoiningRanks()
    ranks.watch([(gone.pid, "rank 1 on a")])
    assert ranks.lost()
    ranks.watch([])
    assert not ranks and ranks.lost() == ""
