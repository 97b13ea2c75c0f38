"""Where the system is short of something: what fails, fails for one caller and for a moment."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.engine._scripts import run_script


@pytest.mark.parametrize("isolation", ["process", "thread"])
@pytest.mark.parametrize(("soft", "hard"), [(1024, 1024), (1024, 4095), (8192, 16384)])
def test_limits_of_open_files(
    tmp_path: Path, models: tuple[str, ...], isolation: str, soft: int, hard: int
) -> None:
    # mlx_lm, which other tests import as it is, lowers the limit of this very process.
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed)
    body = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
        with Backend(offline=True) as backend:
            print(backend.generate(TINY, "Hello", max_tokens=2).finish_reason)
        print(resource.getrlimit(resource.RLIMIT_NOFILE))
        """
    ended = run_script(tmp_path, body, *models, isolation=isolation)
    assert ended.out.splitlines() == ["length", f"({soft}, {hard})"], ended.err


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_moment_without_threads(tmp_path: Path, models: tuple[str, ...], isolation: str) -> None:
    body = """
        def refuse(self):
            raise RuntimeError("can't start new thread")
        start = threading.Thread.start
        with Backend(offline=True) as backend:
            alone = backend.generate(TINY, "Hello", max_tokens=300).text
            stream = backend.stream(TINY, "Hello", max_tokens=300)
            text = next(stream).text
            threading.Thread.start = refuse
            try:
                backend.generate(OTHER, "Hello", max_tokens=2)
            except PullFailed as error:
                print("told", error.retryable)
            if backend.worker_pid:
                os.kill(backend.worker_pid, signal.SIGKILL)
                time.sleep(0.5)
            threading.Thread.start = start
            print(text + "".join(chunk.text for chunk in stream) == alone)
            print(backend.generate(OTHER, "Hello", max_tokens=2).finish_reason)
        """
    ended = run_script(tmp_path, body, *models, isolation=isolation)
    assert ended.out.splitlines() == ["told True", "True", "length"], ended.err


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_ctrl_c_at_any_moment_leaves_the_backend_whole(
    tmp_path: Path, models: tuple[str, ...], isolation: str
) -> None:
    body = """
        import random
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        backend = Backend(offline=True)
        backend.generate(TINY, "Hello", max_tokens=2)
        calls = [
            backend.models,
            lambda: backend.tokens(TINY, "x", timeout=20),
            lambda: backend.generate(TINY, "Hello", max_tokens=2, timeout=20),
            lambda: list(backend.stream(TINY, "Hello", max_tokens=2, timeout=20)),
            backend.events,
            lambda: backend.load(TINY, timeout=20),
        ]
        rnd, struck = random.Random(0), 0
        for n in range(1500):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rnd.random() * 0.004 + 0.00005)
                    rnd.choice(calls)()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                struck += 1
        assert struck > 100, struck
        print(backend.generate(TINY, "Hello", max_tokens=2, timeout=20).finish_reason)
        print(backend.close())
        """
    ended = run_script(tmp_path, body, *models, isolation=isolation)
    assert ended.out.splitlines() == ["length", "True"], ended.err


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_callbacks_that_block_or_want_to_exit(
    tmp_path: Path, models: tuple[str, ...], isolation: str
) -> None:
    body = """
        go, called = threading.Event(), []
        def blocks(progress):
            called.append(progress)
            go.wait(60)
        def exits(progress):
            called.append(progress)
            raise SystemExit
        def asks(progress):
            try:
                backend.models()
            except InvalidRequest:
                called.append(progress)
        backend = Backend(offline=True)
        for model, callback in ((TINY, exits), (SCRIPTED, asks), (OTHER, blocks)):
            count = len(called)
            backend.generate(model, "Hello", max_tokens=2, on_progress=callback, timeout=60)
            until(lambda: len(called) > count)
        print(backend.generate(TINY, "Hello", max_tokens=2, timeout=60).finish_reason)
        print(backend.close())
        """
    ended = run_script(tmp_path, body, *models, isolation=isolation)
    assert ended.out.splitlines() == ["length", "True"], ended.err


@pytest.mark.parametrize(
    ("isolation", "told"), [("process", "length"), ("thread", "change to another one first")]
)
def test_a_working_folder_that_is_gone(
    tmp_path: Path, models: tuple[str, ...], isolation: str, told: str
) -> None:
    body = """
        import tempfile
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
        try:
            with Backend(offline=True) as backend:
                print(backend.generate(TINY, "Hello", max_tokens=2).finish_reason)
        except EngineDied as error:
            print(error)
        """
    ended = run_script(tmp_path, body, *models, isolation=isolation)
    assert told in ended.out, ended.err
