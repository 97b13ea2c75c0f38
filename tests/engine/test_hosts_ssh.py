"""Ranks behind real ssh connections, to sshds on addresses of this machine's loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import HostUnavailable
from tests.conftest import MakeModel
from tests.engine._backend import events, text_of, wait_until
from tests.engine.test_hosts import GREEDY, make, program

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
ADDRESSES = {"second": "127.0.0.2", "third": "127.0.0.3"}
LONG: dict[str, Any] = {"max_tokens": 150, "temperature": 0.8, "seed": 5}
SSHD_CONFIG = """ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
"""
SSH_CONFIG = """Host {name}
  HostName {address}
  Port {port}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking accept-new
"""

pytestmark = [
    pytest.mark.ssh,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        SSHD is None or shutil.which("ssh") is None,
        reason="there is no sshd; `make test-ssh` installs it",
    ),
]


@dataclass
class Machine:
    """An address with an sshd."""

    sshd: psutil.Process

    def ranks(self) -> list[psutil.Process]:
        return [process for process in self._processes() if _is_rank(process)]

    def sessions(self) -> list[psutil.Process]:
        """The processes of sshd's connections."""
        return [process for process in self._processes() if not _is_rank(process)]

    def _processes(self) -> list[psutil.Process]:
        return self.sshd.children(recursive=True)


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "mlx_guarded_llm.worker.rank" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Machine]]:
    """Two more machines, whose names `ssh` knows."""
    for name in ("host_key", "key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
    config, started = "", []
    for name, address in ADDRESSES.items():
        with closing(socket.create_server((address, 0))) as free:
            port = free.getsockname()[1]
        facts = {"name": name, "address": address, "port": port, "folder": tmp_path}
        (tmp_path / f"sshd-{name}").write_text(SSHD_CONFIG.format(**facts))
        config += SSH_CONFIG.format(**facts)
    (tmp_path / "config").write_text(config)
    ssh = shutil.which("ssh")
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "ssh", f'#!/bin/sh\nexec {ssh} -F "{tmp_path}/config" "$@"\n')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # a package's sshd wants it, and no service made it
    try:
        for name in ADDRESSES:
            command = [str(SSHD), "-D", "-e", "-f", str(tmp_path / f"sshd-{name}")]
            with (tmp_path / f"{name}.log").open("wb") as log:
                started.append(subprocess.Popen(command, stderr=log))
        for name in ADDRESSES:
            wait_until(partial(_reached, name))
        yield {
            name: Machine(psutil.Process(each.pid))
            for name, each in zip(ADDRESSES, started, strict=True)
        }
    finally:
        for each in started:
            for process in psutil.Process(each.pid).children(recursive=True):
                process.kill()
            each.kill()
            each.wait()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


def _reached(name: str) -> bool:
    command = ["ssh", "-o", "BatchMode=yes", name, "true"]
    return not subprocess.run(command, check=False, timeout=60, stderr=-3).returncode


@pytest.fixture
def hosts(tmp_path: Path, machines: dict[str, Machine]) -> str:
    """A hostfile with this machine and the two others."""
    entries: list[dict[str, Any]] = [{"ssh": "first", "ips": ["127.0.0.1"]}]
    entries += [
        {"ssh": name, "ips": [address], "python": sys.executable}
        for name, address in ADDRESSES.items()
    ]
    (tmp_path / "hosts.json").write_text(json.dumps(entries))
    return f"pipeline:{tmp_path / 'hosts.json'}"


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether they have ended; an sshd that stands still waits for none of its children."""
    return all(map(_gone, processes))


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def ranks(machines: dict[str, Machine]) -> list[psutil.Process]:
    return [rank for machine in machines.values() for rank in machine.ranks()]


def start(backend: Backend, folder: str, hosts: str) -> tuple[Any, list[Any], str]:
    """A stream over all machines with its first chunk, and the text that one machine gives."""
    alone = backend.generate(folder, "Hello", **LONG).text
    stream = backend.stream(folder, "Hello", hosts=hosts, **LONG)
    return stream, [next(stream)], alone


def test_three_machines_give_the_tokens_of_one_and_nothing_stays_there(
    tiny: MakeModel, tmp_path: Path, machines: dict[str, Machine], hosts: str
) -> None:
    folder = tiny(architecture="qwen2", layers=3)
    with make(tmp_path) as backend:
        alone = backend.generate(folder, "Hello", **GREEDY)
        together = backend.generate(folder, "Hello", hosts=hosts, **GREEDY)
        assert together.text == alone.text
        started = ranks(machines)
        assert len(started) == 2
    wait_until(lambda: gone(started))
    wait_until(lambda: not any(machine.sessions() for machine in machines.values()))


@pytest.mark.parametrize("what", ["the rank", "sshd's connection", "ssh"])
def test_a_connection_that_ends_is_a_pause(
    what: str, tiny: MakeModel, tmp_path: Path, machines: dict[str, Machine], hosts: str
) -> None:
    folder = tiny(architecture="qwen2", layers=3)
    with make(tmp_path) as backend:
        stream, chunks, alone = start(backend, folder, hosts)
        before = ranks(machines)
        assert backend.worker_pid is not None and len(before) == 2
        victims = {
            "the rank": machines["third"].ranks(),
            "sshd's connection": machines["third"].sessions(),
            "ssh": psutil.Process(backend.worker_pid).children(recursive=True),
        }[what]
        assert victims
        for victim in victims:
            victim.kill()
        chunks += stream
        assert text_of(chunks) == alone
        guard = chunks[-1].guard
        assert guard is not None and guard.resumed
        assert events(backend, "engine.died")[-1].details["how"] == "rank_lost"
        wait_until(lambda: gone(before))
        assert len(ranks(machines)) == 2


def test_a_rank_ends_when_its_engine_was_killed(
    tiny: MakeModel, tmp_path: Path, machines: dict[str, Machine], hosts: str
) -> None:
    folder = tiny(architecture="qwen2", layers=3)
    with make(tmp_path) as backend:
        stream, chunks, alone = start(backend, folder, hosts)
        before, pid = ranks(machines), backend.worker_pid
        assert pid is not None and before
        os.kill(pid, signal.SIGKILL)
        chunks += stream
        assert text_of(chunks) == alone
        wait_until(lambda: gone(before))


def test_a_network_that_is_cut_is_a_pause_and_no_rank_stays_behind_it(
    tiny: MakeModel, tmp_path: Path, machines: dict[str, Machine], hosts: str
) -> None:
    folder = tiny(architecture="qwen2", layers=3)
    with make(tmp_path) as backend:
        stream, chunks, alone = start(backend, folder, hosts)
        before, cut = machines["third"].ranks(), machines["third"].sessions()
        for session in cut:  # it says nothing more, and no end of it is seen either
            session.suspend()
        for rank in before:
            rank.suspend()  # its packets to the others are lost as well
        chunks += stream
        assert text_of(chunks) == alone
        assert events(backend, "engine.died")[-1].details["how"] == "rank_lost"
        for rank in before:
            rank.resume()
        wait_until(lambda: gone(before))
        assert all(session.is_running() for session in cut)


def test_a_machine_that_refuses_is_named(
    tiny: MakeModel, tmp_path: Path, machines: dict[str, Machine], hosts: str
) -> None:
    (tmp_path / "key.pub").write_text("")
    folder = tiny(architecture="qwen2", layers=3)
    with make(tmp_path) as backend:
        with pytest.raises(HostUnavailable, match=r"on second .*Permission denied"):
            backend.generate(folder, "Hello", hosts=hosts, **GREEDY)
        assert backend.generate(folder, "Hello", **GREEDY).text
