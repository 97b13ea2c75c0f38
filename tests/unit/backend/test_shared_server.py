"""Where the shared server listens, and whether one runs, without any server."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mlx_guarded_llm.backend import runtime_folder, shared_server
from mlx_guarded_llm.backend.default_backend import server_url
from mlx_guarded_llm.errors import InvalidRequest, ServerAlreadyRunning, ServerUnavailable


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of the shared server; its path is short enough for a socket."""
    with TemporaryDirectory(prefix="run-") as folder:
        monkeypatch.setenv(runtime_folder.VARIABLE, folder)
        yield Path(folder)


@pytest.fixture
def listening(place: Path) -> Iterator[Path]:
    """Somebody listens there, and answers nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place / "server.sock"))
        sock.listen(0)
        yield place


def test_nothing_is_there(place: Path) -> None:
    assert shared_server.address() is None and shared_server.running() is None
    place.rmdir()
    assert shared_server.address() is None and shared_server.running() is None


def test_a_socket_that_was_left_behind_is_none(listening: Path) -> None:
    url = f"unix://{listening}/server.sock"
    assert shared_server.address() == url
    for _ in range(20):  # until it takes no more: it is still there
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(0)
            try:
                client.connect(str(listening / "server.sock"))
            except BlockingIOError:
                break
        assert shared_server.address() == url
    assert shared_server.running() is None, "it holds no lock"


def test_a_socket_without_a_listener(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place / "server.sock"))
    assert (place / "server.sock").is_socket()
    assert shared_server.address() is None


def test_only_a_folder_of_ones_own_is_used(listening: Path) -> None:
    listening.chmod(0o755)
    assert shared_server.address() is None and shared_server.running() is None
    with pytest.raises(InvalidRequest, match="only this user"), shared_server.claim():
        pass
    listening.chmod(0o700)
    assert shared_server.address() is not None


def test_nor_a_link_to_one(
    listening: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(listening)
    monkeypatch.setenv(runtime_folder.VARIABLE, str(link))
    assert shared_server.address() is None


def test_nor_one_that_others_may_replace(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = listening / "inner"
    inner.mkdir(mode=0o700)
    monkeypatch.setenv(runtime_folder.VARIABLE, str(inner))
    listening.chmod(0o777)
    with pytest.raises(InvalidRequest, match="others may change"), shared_server.claim():
        pass
    listening.chmod(0o700)
    with shared_server.claim():
        pass


def test_a_path_that_is_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(runtime_folder.VARIABLE, str(tmp_path / ("x" * 100)))
    with pytest.raises(InvalidRequest, match="103") as caught:
        shared_server.socket_path()
    assert runtime_folder.VARIABLE in caught.value.hint
    assert shared_server.address() is None


def test_by_default_it_is_the_folder_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime_folder.VARIABLE)
    assert shared_server.socket_path().parent.name == "mlx-guarded-llm"


def test_there_is_one_at_most(place: Path) -> None:
    with shared_server.claim() as claim:
        entry = shared_server.running()
        assert entry is not None and entry.pid == os.getpid() and entry.urls == ()
        claim.write(shared_server.this_process("serving", urls=("unix:///x",), log="/log"))
        entry = shared_server.running()
        assert entry is not None and entry.urls == ("unix:///x",) and entry.log == "/log"
        with (
            pytest.raises(ServerAlreadyRunning, match=str(os.getpid())),
            shared_server.claim(),
        ):
            pass
    assert shared_server.running() is None
    with shared_server.claim():
        assert shared_server.running() is not None


HOLD = """
import sys
from mlx_guarded_llm.backend import runtime_folder, shared_server
with shared_server.claim():
    print(flush=True)
    sys.stdin.read()
"""


def test_what_a_dead_one_left_means_nothing(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        entry = shared_server.running()
        assert entry is not None and entry.pid == holder.pid
        holder.kill()
        holder.wait()
        assert json.loads((place / "server.lock").read_text())["pid"] == holder.pid
        assert shared_server.running() is None
        with shared_server.claim():
            entry = shared_server.running()
            assert entry is not None and entry.pid == os.getpid()


def test_an_entry_of_another_process_is_not_believed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has the lock, and the file tells of one that died, whose number is used again."""
    monkeypatch.setattr(shared_server, "SETTLING", 0.0)
    file = place / "server.lock"
    entry = {
        "pid": os.getpid(),
        "started": 1.0,
        "version": "0",
        "state": "serving",
        "urls": [],
        "log": "",
    }
    file.write_text(json.dumps(entry))
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert shared_server.running() is None


def test_who_only_looks_keeps_nobody_from_starting(place: Path) -> None:
    (place / "server.lock").touch()
    looks = (
        "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); "
        "print(flush=True); time.sleep(0.2)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", looks, str(place / "server.lock")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with shared_server.claim():
            pass


@pytest.mark.parametrize(
    ("variable", "share", "options", "asks"),
    [
        (None, None, {}, "shared"),
        (None, None, {"load_wait": 5}, None),
        (None, False, {}, None),
        (None, True, {}, "shared"),
        ("off", None, {}, None),
        ("off", True, {}, "shared"),
        ("http://a", None, {}, "http://a"),
        ("http://a", True, {}, "http://a"),
        ("http://a", False, {"load_wait": 5}, None),
        ("http://a", None, {"load_wait": 5}, InvalidRequest),
        (None, True, {"load_wait": 5}, InvalidRequest),
    ],
)
def test_which_server_is_asked(
    variable: str | None,
    share: bool | None,
    options: dict[str, int],
    asks: str | type[Exception] | None,
    listening: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("MLX_GUARDED_URL", variable)
    if isinstance(asks, type):
        with pytest.raises(asks, match="load_wait"):
            server_url(options, share)
    else:
        wanted = f"unix://{listening}/server.sock" if asks == "shared" else asks
        assert server_url(options, share) == wanted


def test_none_is_asked_where_none_is(place: Path) -> None:
    assert server_url({}) is None
    with pytest.raises(ServerUnavailable, match="no shared server"):
        server_url({}, share=True)
