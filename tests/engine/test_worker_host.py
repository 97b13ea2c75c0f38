"""The engine in a process of its own: what it says, how it dies, how it is stopped."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import logs
from mlx_guarded_llm.engine.protocol import (
    Broken,
    Delta,
    Ended,
    JobEnded,
    Measured,
    Prepare,
    Prepared,
    Report,
    Run,
    Start,
    Stopped,
)
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.params import SamplingParams
from mlx_guarded_llm.request import PromptRequest
from mlx_guarded_llm.worker.parent import client as host_module
from mlx_guarded_llm.worker.parent import process as process_module
from mlx_guarded_llm.worker.parent.client import WorkerEngine
from mlx_guarded_llm.worker.parent.death import Died
from mlx_guarded_llm.worker.parent.process import WorkerProcess
from mlx_guarded_llm.worker.pickling import pack
from tests._no_back_end import no_back_end
from tests.conftest import MakeModel
from tests.engine._worker import OPTIONS, PATIENCE, Host, files_of, is_gone, until

pytestmark = pytest.mark.slow

MakeHost = Callable[..., Host]


@pytest.fixture
def make_host() -> Iterator[MakeHost]:
    made: list[Host] = []

    def make(**options: Any) -> Host:
        made.append(Host(**options))
        return made[-1]

    yield make
    for host in made:
        host.engine._process.signal(signal.SIGKILL)
        assert host.engine._process.ended.wait(PATIENCE)


def generate(host: Host, folder: str, max_tokens: int) -> None:
    """Load a model and begin an answer."""
    host.load(folder)
    files = files_of(folder)
    params = SamplingParams(max_tokens=max_tokens)
    prompt = PromptRequest("Hello")
    host.engine.send(
        Prepare(request_id="a", model=folder, files=files, prompt=prompt, params=params, seed=0)
    )
    host.next(Prepared)
    host.engine.send(Start("a"))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(7)


def close_everything() -> None:
    os.closerange(3, 100)  # as a daemon does


def hang_up() -> None:
    socket.socket(fileno=os.dup(int(sys.argv[1]))).shutdown(socket.SHUT_WR)


def close_stdout() -> None:
    sys.stdout.close()


def segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def abort() -> None:
    print("libc++abi: terminating due to uncaught exception", file=sys.stderr)
    os.abort()


# ---- while it lives -----------------------------------------------------------------------


def test_a_life(make_host: MakeHost, tiny: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    host = make_host()
    assert host.ready().device["device"] in ("cpu", "gpu")
    assert host.pid != os.getpid()
    assert {*host.engine.timings} == {"spawn", "import", "ready"}
    generate(host, tiny(), max_tokens=20)
    end = host.next(Ended)
    assert end.error is None and end.counts["completion_tokens"] == 20
    deltas = [report for report in host.reports if isinstance(report, Delta)]
    assert sum(len(delta.chunk.tokens) for delta in deltas) <= 20
    assert any(isinstance(report, Measured) for report in host.reports)

    def speak() -> tuple[int, str]:
        print("to stdout: grüße")
        print("to stderr", file=sys.stderr)
        logging.getLogger("mlx_guarded_llm.engine").warning("to the log, %d", 1)
        return os.getpid(), threading.current_thread().name

    host.run(speak)
    assert host.value() == (host.pid, "mlx-guarded-mlx")
    until(lambda: "to stderr" in host.engine._process.output.stderr)  # type: ignore[union-attr]
    host.close()
    assert host.more() == []
    out, err = capsys.readouterr()
    assert "to stdout: grüße" in out and "to stderr" in err


def test_what_is_logged_there_is_logged_here(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    host = make_host()

    def fn() -> None:
        log = logging.getLogger("mlx_guarded_llm.engine")
        log.debug("too small")
        try:
            raise ValueError("of theirs")
        except ValueError:
            log.exception("it happened %s", "there")

    host.run(fn)
    host.value()
    assert logs.flush(PATIENCE)
    (record,) = [r for r in caplog.records if "it happened there" in r.message]
    assert record.name == "mlx_guarded_llm.engine" and record.levelno == logging.ERROR
    assert "ValueError: of theirs" in record.message
    assert "too small" not in caplog.text


def test_a_command_that_cannot_be_pickled_is_refused(make_host: MakeHost) -> None:
    host = make_host()
    host.ready()
    host.engine.send(Run("run", "theirs", lambda: 1, False))
    report = host.next(JobEnded)
    assert isinstance(report.error, InvalidRequest) and "worker" in str(report.error)
    host.run(lambda: 1)
    assert host.value() == 1, "the others go on"


# ---- death ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "cause", "code", "said"),
    [
        (abort, "abort", -signal.SIGABRT, "uncaught exception"),
        (segfault, "segfault", -signal.SIGSEGV, "Segmentation fault"),
        (kill, "killed", -signal.SIGKILL, ""),
        (leave, "exit", 7, ""),
    ],
)
def test_death_inside_foreign_work(
    fn: Callable[[], None], cause: str, code: int, said: str, make_host: MakeHost
) -> None:
    host = make_host()
    host.ready()
    for n in range(50):
        host.engine.send(Run(f"run-{n}", "quick", int, False))
    host.run(fn, label="their work")
    death = host.death()
    assert (death.cause, death.code) == (cause, code)
    assert (death.work, death.model) == ("run", "their work")
    assert said in death.stderr and str(host.pid) in death.text
    assert sum(isinstance(report, JobEnded) for report in host.reports) == 50, "all came before"
    assert is_gone(host.pid) and host.more() == []
    host.engine.close()
    assert host.more() == []


def test_death_while_it_generates_names_the_model(make_host: MakeHost, tiny: MakeModel) -> None:
    host = make_host()
    generate(host, tiny(), max_tokens=2000)
    host.next(Delta)
    status = host.engine._process.status
    assert status is not None
    until(lambda: status.read().work == "step")
    os.kill(host.pid, signal.SIGSTOP)  # wherever it is, it stays there
    while status.read().work != "step":
        os.kill(host.pid, signal.SIGCONT)
        os.kill(host.pid, signal.SIGSTOP)
    os.kill(host.pid, signal.SIGKILL)
    death = host.death()
    assert (death.cause, death.work, death.model) == ("killed", "step", tiny())


def test_sigterm_from_outside(make_host: MakeHost) -> None:
    host = make_host()
    host.ready()
    os.kill(host.pid, signal.SIGTERM)
    death = host.death()
    assert (death.cause, death.code) == ("killed", -signal.SIGTERM)


def test_it_leaves_well_though_a_function_closed_its_output(make_host: MakeHost) -> None:
    host = make_host()
    host.ready()
    host.run(close_stdout)
    host.value()
    os.kill(host.pid, signal.SIGTERM)
    assert host.death().code == -signal.SIGTERM


def test_a_child_of_the_worker_holds_its_pipes(make_host: MakeHost) -> None:
    host = make_host()

    def fn() -> int:
        return subprocess.Popen(["sleep", "1000"], close_fds=False).pid

    host.run(fn)
    pid = host.value()
    try:
        host.run(leave)
        assert host.death().code == 7
    finally:
        os.kill(pid, signal.SIGKILL)


def test_the_engine_breaks(make_host: MakeHost) -> None:
    host = make_host()

    def spoil() -> None:
        from mlx_guarded_llm.engine.engine import Engine
        from mlx_guarded_llm.engine.thread import mlx_thread

        (engine,) = [w for w in mlx_thread()._steppables if isinstance(w, Engine)]
        mlx_thread().post(lambda: engine._die(RuntimeError("results are zeros")))

    host.run(spoil)
    death = host.death()
    assert death.cause == "condemned" and "results are zeros" in death.text
    assert death.code == 70
    assert not any(isinstance(report, Broken) for report in host.reports)


@pytest.fixture
def watched_host(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> Host:
    """One whose hang is found soon; its start, of which these tests are not, has its time."""
    stall_timeout = 3.0
    monkeypatch.setattr(host_module, "START_PATIENCE", PATIENCE / stall_timeout)
    host = make_host(stall_timeout=stall_timeout)
    host.ready()
    return host


def test_stopped_by_a_signal_it_is_hung(watched_host: Host) -> None:
    host = watched_host
    os.kill(host.pid, signal.SIGSTOP)
    death = host.death()
    assert death.cause == "hung" and "no sign of life" in death.text


def test_foreign_work_that_lets_nobody_run_is_hung(watched_host: Host) -> None:
    host = watched_host

    def holds_the_interpreter() -> None:
        import ctypes

        ctypes.PyDLL(None).sleep(1000)

    host.run(holds_the_interpreter, label="stuck")
    death = host.death()
    assert (death.cause, death.model) == ("hung", "stuck")
    assert "holds_the_interpreter" in death.stderr, "where it hangs"


@pytest.mark.parametrize(("fn", "cause"), [(close_everything, "exit"), (hang_up, "condemned")])
def test_nothing_comes_from_it_any_more(
    fn: Callable[[], None], cause: str, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cause == "condemned":  # it does not leave by itself, so nobody need wait for that
        monkeypatch.setattr(host_module, "LEAVE_GRACE", 0.1)
    host = make_host()
    host.ready()
    host.run(fn)
    death = host.death()
    assert death.cause == cause and is_gone(death.pid)


# ---- it cannot start ------------------------------------------------------------------------


def test_mlx_cannot_be_imported(
    make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", no_back_end(tmp_path))
    host = make_host()
    error = host.next(Broken).error
    assert "libmlx.so" in str(error) and "[cpu]" in str(error)
    assert len(host.reports) == 1
    host.engine.close()
    host.next(Stopped)
    host.engine.close()
    assert host.more() == []
    until(lambda: is_gone(host.pid))


def test_a_module_that_exits_when_imported(
    make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlx_lm.py").write_text("raise SystemExit('what a module')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    death = make_host().death()
    assert death.cause == "not_started" and "what a module" in death.stderr


def test_another_version_was_installed(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "__version__", "0.0.9")
    host = make_host()
    error = host.next(Broken).error
    assert "0.0.9" in str(error) and "restart" in str(error)
    host.close()


def test_there_is_no_python(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python3")
    host = make_host()
    assert "/no/such/python3" in str(host.next(Broken).error)
    host.run(lambda: 1)
    host.engine.close()
    host.next(Stopped)
    assert host.more() == []


def test_python_does_not_start(
    make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "python3"
    file.write_text("#!/bin/sh\necho no library >&2\nexit 9\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))
    death = make_host().death()
    assert (death.cause, death.code, death.stderr) == ("not_started", 9, "no library\n")


def test_another_program_answers(
    make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "python3"
    file.write_text(
        '#!/bin/sh\nfor last; do :; done\neval "echo nonsense nonsense >&$7"\nsleep 99\n'
    )
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))
    death = make_host().death()
    assert death.cause == "not_started" and is_gone(death.pid)


def test_the_system_has_no_descriptor_left(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: Any, **options: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuses)
    death = make_host().death()
    assert death.cause == "not_started" and "temporarily unavailable" in death.text


# ---- stop -----------------------------------------------------------------------------------


def test_closed_before_it_has_started(make_host: MakeHost) -> None:
    host = make_host()
    host.engine.close()
    host.engine.close()
    host.next(Stopped)
    assert is_gone(host.pid) and host.more() == []


def test_closed_while_it_generates(make_host: MakeHost, tiny: MakeModel) -> None:
    host = make_host()
    generate(host, tiny(), max_tokens=2000)
    host.next(Delta)
    host.close()
    assert not any(isinstance(report, Died) for report in host.reports)


def test_one_that_does_not_stop_is_killed_in_the_end(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = make_host()
    host.run(lambda: time.sleep(1000))
    status = host.engine._process.status
    assert status is not None
    until(lambda: status.read().work == "run")
    monkeypatch.setattr(process_module, "GRACE", 0.2)
    monkeypatch.setattr(process_module, "GRACE_PER_GIB", 0.0)
    host.close()
    assert logs.flush(PATIENCE)
    assert "SIGTERM" in caplog.text and "SIGKILL" in caplog.text
    assert host.engine._process.code == -signal.SIGKILL


# ---- spares ---------------------------------------------------------------------------------


def test_a_spare_made_in_a_thread_that_ended(make_host: MakeHost) -> None:
    made: list[WorkerProcess] = []
    maker = threading.Thread(target=lambda: made.append(WorkerProcess()))
    maker.start()
    maker.join()
    assert made[0].rss > 0
    host = make_host(process=made[0])
    assert host.pid == made[0].pid
    host.run(lambda: 42)
    assert host.value() == 42


def test_a_spare_that_died_is_replaced(make_host: MakeHost) -> None:
    process = WorkerProcess()
    os.kill(process.pid, signal.SIGKILL)
    assert process.ended.wait(60)
    host = make_host(process=process)
    assert host.pid != process.pid
    host.ready()


def test_a_spare_that_nobody_wants() -> None:
    process = WorkerProcess()
    process.stop()
    assert process.ended.wait(60)
    assert process.code == 0 and is_gone(process.pid)


def test_a_refused_command_may_be_answered_with_another() -> None:
    """Also when it waited for the greeting: a listener may send whatever it likes."""
    reports: queue.SimpleQueue[Report | Died] = queue.SimpleQueue()

    def listen(report: Report | Died) -> None:
        if isinstance(report, JobEnded) and report.job_id == "refused":
            engine.send(Run("second", "theirs", pack(int), False))
        reports.put(report)

    engine = WorkerEngine(listen, OPTIONS)
    cannot_be_sent: Any = threading.Lock()
    engine.send(Run("refused", "theirs", cannot_be_sent, False))
    ended: list[JobEnded] = []
    while len(ended) < 2:
        report = reports.get(timeout=PATIENCE)
        assert not isinstance(report, (Died, Stopped)), report
        ended += [report] if isinstance(report, JobEnded) else []
    assert [report.job_id for report in ended] == ["refused", "second"]
    assert isinstance(ended[0].error, InvalidRequest)
    engine.close()
    while not isinstance(reports.get(timeout=PATIENCE), Stopped):
        pass
