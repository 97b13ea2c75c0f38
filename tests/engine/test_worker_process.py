"""A worker is found and started wherever its parent runs, and never outlives it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mlx_guarded_llm.worker.parent.process import WorkerProcess
from tests.engine._worker import PATIENCE, Host, is_gone, until

pytestmark = pytest.mark.slow


# ---- wherever the parent runs ---------------------------------------------------------------

# A script without a __main__ guard, with an exception that only it knows.
SCRIPT = """
import os, sys, threading
import mlx_guarded_llm

class Theirs(Exception):
    pass

def raises():
    raise Theirs("of __main__")

def use():
    import helper_beside  # a module of the user's own
    with mlx_guarded_llm.Backend(isolation="process", timeout=100) as backend:
        parent = os.getpid()
        assert backend.run(lambda: os.getppid()) == parent
        assert backend.run(helper_beside.tensor) == [1.0, 1.0]
        try:
            backend.run(raises)
        except Theirs as error:
            assert error.args == ("of __main__",)
        else:
            raise AssertionError("nothing was raised")
    assert "mlx.core" not in sys.modules and "transformers" not in sys.modules

"""
HELPER = """
def tensor():
    import mlx.core as mx
    return mx.ones(2).tolist()
"""
MANY_DESCRIPTORS = """
import os, resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1500)]
"""
BLOCKED_SIGNALS = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
"""
FOUND_BY_THE_SCRIPT = f"import sys; sys.path += {[entry for entry in sys.path if entry]!r}"
USE = 'use(); open("done", "w").close()'
USE_IN_A_THREAD = f"t = threading.Thread(target=use); t.start(); t.join(); {USE}"


Running = dict[str, tuple[Path, "subprocess.Popen[str]"]]  # by way: cwd and process


@dataclass(frozen=True)
class Way:
    """One way of running a script.

    Attributes:
        arguments: of Python; "-c" and "-" are given the script.
        before: lines in front of it.
        use: its last lines.
        command: in front of Python.
    """

    arguments: tuple[str, ...] = ("../script.py",)
    before: str = ""
    use: str = USE
    command: tuple[str, ...] = ()


WAYS = {
    "a script": Way(),
    "python -c": Way(("-c",)),
    "stdin": Way(("-",)),
    "no stdin, stdout nor stderr": Way(command=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")),
    "many descriptors": Way(before=MANY_DESCRIPTORS),
    "a thread of a server": Way(before=BLOCKED_SIGNALS, use=USE_IN_A_THREAD),
    "packages found by the script": Way(("-S", "../script.py"), before=FOUND_BY_THE_SCRIPT),
    "isolated": Way(("-I", "../script.py"), before='import sys; sys.path.append("..")'),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """All of them at once, in folders and with an interpreter whose paths have spaces."""
    base = tmp_path_factory.mktemp("ways")
    python = _environment(base / "an environment")
    started = {name: _start(way, base / f"for {name}", python) for name, way in WAYS.items()}
    yield started
    for _, process in started.values():
        process.kill()
        process.communicate()


def _environment(folder: Path) -> Path:
    python = folder / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    (folder / "lib").symlink_to(Path(sys.prefix, "lib"))
    (folder / "pyvenv.cfg").write_text(Path(sys.prefix, "pyvenv.cfg").read_text())
    return python


def _start(way: Way, folder: Path, python: Path) -> tuple[Path, subprocess.Popen[str]]:
    cwd = folder / "in here"
    cwd.mkdir(parents=True)
    text = "\n".join([way.before, SCRIPT, way.use])
    (folder / "script.py").write_text(text)
    beside = folder if way.arguments[-1].endswith(".py") else cwd
    (beside / "helper_beside.py").write_text(HELPER)
    # What may lie about where a script is started; the rest would shadow things for Python
    # itself where that looks there.
    lying = ["mlx", "mlx_lm", "transformers", *(["queue", "typing"] if beside == folder else [])]
    for name in lying:
        (cwd / name).mkdir()
        (cwd / name / "__init__.py").write_text("raise SystemExit('the wrong module')")
    arguments = [*way.arguments, *([text] if way.arguments == ("-c",) else [])]
    process = subprocess.Popen(
        [*way.command, str(python), *arguments],
        cwd=cwd,
        env=os.environ | {"TMPDIR": str(cwd), "MLX_GUARDED_CACHE_DIR": str(folder / "the cache")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    if way.arguments == ("-",):
        process.stdin.write(text)
    process.stdin.close()
    process.stdin = None
    return cwd, process


@pytest.mark.parametrize("name", WAYS)
def test_a_parent_of_any_kind(name: str, running: Running) -> None:
    folder, process = running[name]
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert (out, err) == ("", "")
    assert (folder / "done").exists()


# ---- together with its parent ---------------------------------------------------------------


def script(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_parent_that_is_killed_takes_it_along() -> None:
    with script(
        """
        import time
        from mlx_guarded_llm.worker.parent.process import WorkerProcess
        print(WorkerProcess().pid, flush=True)
        time.sleep(1000)
        """
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.kill()
    until(lambda: is_gone(pid))


def test_the_end_of_the_socket_ends_it_too() -> None:
    """As where no kernel sends a signal for the end of a parent."""
    process = WorkerProcess()
    process.hang_up()
    assert process.ended.wait(PATIENCE)
    assert process.code == 0


def test_a_script_that_ends_without_a_word_leaves_none() -> None:
    with script(
        """
        from mlx_guarded_llm.worker.parent.process import WorkerProcess
        print(*(WorkerProcess().pid for _ in range(2)))
        """
    ) as parent:
        out, _ = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 0
    assert all(is_gone(int(pid)) for pid in out.split())


def test_a_forked_child_of_the_parent_holds_nothing_of_it() -> None:
    with script(
        """
        import os
        from mlx_guarded_llm.worker.parent.process import WorkerProcess
        def ours():
            return {os.readlink(f"/dev/fd/{d}") for d in os.listdir("/dev/fd") if int(d) > 2
                    and os.path.lexists(f"/dev/fd/{d}")} - {"/proc"}
        before = ours()
        process = WorkerProcess()
        held = {name for name in ours() - before if name.startswith(("socket", "pipe"))}
        assert len(held) >= 3
        if (child := os.fork()) == 0:
            os._exit(len(held & ours()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert process.alive
        print("ok")
        """
        if sys.platform == "linux"
        else "print('ok')"
    ) as parent:
        out, _ = parent.communicate(timeout=PATIENCE)
    assert out == "ok\n"


def test_where_ended_children_are_not_told_of() -> None:
    with script(
        """
        import os, signal
        from mlx_guarded_llm.worker.parent.process import WorkerProcess
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        process = WorkerProcess()
        process.signal(signal.SIGKILL)
        assert process.ended.wait(60)
        print(process.code)
        """
    ) as parent:
        out, _ = parent.communicate(timeout=PATIENCE)
    assert out == "None\n"


# ---- nothing is left ------------------------------------------------------------------------


def test_twenty_deaths_leave_nothing() -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()
        this = psutil.Process()
        return this.num_fds(), len(this.children()), threading.active_count()

    def die() -> None:
        host = Host()
        os.kill(host.pid, signal.SIGKILL)
        assert host.death().cause == "not_started"
        assert is_gone(host.pid)

    die()
    before = held()
    for _ in range(20):
        die()
    until(lambda: held() == before)  # the threads end a moment later
