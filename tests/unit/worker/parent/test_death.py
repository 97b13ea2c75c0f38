from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any, get_args

import pytest

from mlx_guarded_llm.engine.observer import Work
from mlx_guarded_llm.worker.parent.death import Cause, Death, doing, read_death
from mlx_guarded_llm.worker.status_page import WorkerStatus

STEP = WorkerStatus(heartbeat=1.0, work="step", model="smollm2-135m", since=1.0, longest=0.1)
LOAD = WorkerStatus(heartbeat=1.0, work="load", model="llama-70b", since=1.0)
IDLE = WorkerStatus(heartbeat=1.0)


def death(code: int | None, status: WorkerStatus | None = STEP, **more: Any) -> Death:
    facts = {"pid": 4711, "stderr": "", "lived": 3.0, "started": True, **more}
    return read_death(code=code, status=status, **facts)


@pytest.mark.parametrize(
    ("found", "cause", "text"),
    [
        (
            death(-signal.SIGABRT),
            "abort",
            "the worker (pid 4711) died of SIGABRT while it was generating with smollm2-135m",
        ),
        (
            death(-signal.SIGSEGV, LOAD),
            "segfault",
            "the worker (pid 4711) died of SIGSEGV while it was loading llama-70b",
        ),
        (death(-signal.SIGBUS, None), "segfault", "the worker (pid 4711) died of SIGBUS"),
        (
            death(-signal.SIGKILL, IDLE),
            "killed",
            "the worker (pid 4711) was killed by SIGKILL while it was idle",
        ),
        (death(-signal.SIGTERM, None), "killed", "the worker (pid 4711) was killed by SIGTERM"),
        (death(-40, None), "killed", "the worker (pid 4711) was killed by signal 40"),
        (
            death(-signal.SIGKILL, LOAD, oom_kills=1),
            "out_of_memory",
            "the worker (pid 4711) was killed by the kernel for memory while it was loading "
            "llama-70b",
        ),
        (
            death(-signal.SIGABRT, LOAD, stderr="terminate called: std::bad_alloc"),
            "out_of_memory",
            "the worker (pid 4711) ran out of memory and died of SIGABRT while it was loading "
            "llama-70b",
        ),
        (
            death(70, condemned="rank 1 on b was ended by SIGKILL", rank_lost=True),
            "rank_lost",
            "the worker (pid 4711) was ended while it was generating with smollm2-135m: "
            "rank 1 on b was ended by SIGKILL",
        ),
        (
            death(3, IDLE),
            "exit",
            "the worker (pid 4711) left with status 3 while it was idle",
        ),
        (death(0, None), "exit", "the worker (pid 4711) left with status 0"),
        (death(None, None), "exit", "the worker (pid 4711) is gone"),
        (
            death(-signal.SIGKILL, hung="no progress for 61 s while generating with smollm2-135m"),
            "hung",
            "the worker (pid 4711) stood still and was ended: no progress for 61 s while "
            "generating with smollm2-135m",
        ),
        (
            death(-signal.SIGTERM, condemned="command buffer failed"),
            "condemned",
            "the worker (pid 4711) was ended while it was generating with smollm2-135m, after an "
            "error of MLX: command buffer failed",
        ),
        (
            death(1, None, started=False),
            "not_started",
            "the worker (pid 4711) did not start: it left with status 1",
        ),
        (
            death(-signal.SIGKILL, None, started=False, hung="it said nothing for 60 s"),
            "not_started",
            "the worker (pid 4711) did not start: it stood still and was ended: it said nothing "
            "for 60 s",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_cause_and_sentence(found: Death, cause: Cause, text: str) -> None:
    assert (found.cause, found.text) == (cause, text)


def test_what_it_was_doing_goes_along() -> None:
    found = death(-signal.SIGABRT, stderr="last words")
    assert (found.work, found.model, found.stderr) == ("step", "smollm2-135m", "last words")
    assert (found.pid, found.code, found.lived) == (4711, -signal.SIGABRT, 3.0)
    assert (death(1, None).work, death(1, None).model) == ("", "")


@pytest.mark.parametrize(
    "stderr",
    [
        "RuntimeError: [metal::malloc] Unable to allocate 12 bytes.",
        "[METAL] Command buffer execution failed: Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
        "MemoryError",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
@pytest.mark.parametrize("code", [1, -signal.SIGABRT])
def test_stderr_tells_of_memory(stderr: str, code: int) -> None:
    assert death(code, stderr=f"noise\n{stderr}\n").cause == "out_of_memory"


def test_memory_that_ran_out_long_ago_is_not_the_cause() -> None:
    stderr = "out of memory, tried again\n" + "later\n" * 1000
    assert death(-signal.SIGABRT, stderr=stderr).cause == "abort"


@pytest.mark.parametrize("code", [-signal.SIGSEGV, -signal.SIGTERM, -signal.SIGKILL])
def test_a_signal_is_not_explained_by_what_stderr_says_of_memory(code: int) -> None:
    assert death(code, stderr="out of memory").cause != "out_of_memory"


def test_kills_of_others_explain_no_other_signal() -> None:
    assert death(-signal.SIGTERM, oom_kills=5).cause == "killed"
    assert death(-signal.SIGABRT, oom_kills=5).cause == "abort"


@pytest.mark.parametrize("why", [{"hung": "no sign of life for 61 s"}, {"condemned": "zeros"}])
def test_what_we_ended_ourselves_is_no_lack_of_memory(why: dict[str, Any]) -> None:
    found = death(-signal.SIGKILL, oom_kills=1, stderr="out of memory", **why)
    assert found.cause == next(iter(why))


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("import os; os.abort()", "abort"),
        ("import ctypes; ctypes.string_at(0)", "segfault"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed"),
        ("import sys; sys.exit(3)", "exit"),
        ("raise MemoryError", "out_of_memory"),
    ],
)
def test_real_processes(script: str, cause: Cause) -> None:
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert death(child.returncode, stderr=child.stderr).cause == cause


@pytest.mark.parametrize(
    ("found", "brief"),
    [
        (death(-signal.SIGABRT), "SIGABRT while generating"),
        (death(-signal.SIGSEGV, LOAD), "SIGSEGV while loading"),
        (death(-signal.SIGKILL, LOAD, oom_kills=1), "out of memory while loading"),
        (death(-signal.SIGKILL, hung="no progress"), "no progress while generating"),
        (death(3, IDLE), "status 3"),
        (death(None, None), "an unknown end"),
        (death(1, None, started=False), "it did not start"),
    ],
)
def test_in_brief(found: Death, brief: str) -> None:
    assert found.brief == brief


def test_every_work_and_cause_has_words() -> None:
    for work in get_args(Work):
        assert doing(work, "phi3") and doing(work, "")
        for cause in get_args(Cause):
            assert Death(cause=cause, text="", pid=1, work=work).brief
    assert doing("", "phi3") == "idle"
