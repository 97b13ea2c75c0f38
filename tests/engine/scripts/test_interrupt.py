"""Ctrl-C: it arrives as KeyboardInterrupt, and the process ends without another word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine._backend import TEXT
from tests.engine._scripts import run_script

pytestmark = pytest.mark.slow


INTERRUPTED = {
    "in generate": """
        backend = Backend()
        def interrupt():
            until(lambda: happened(backend, "request.first_token"))
            os.kill(os.getpid(), signal.SIGINT)
        spawn(interrupt)
        backend.generate(TINY, "Hello", max_tokens=50_000)
        """,
    "in a stream": """
        backend = Backend()
        read = []
        def interrupt():
            until(lambda: len(read) > 3)
            os.kill(os.getpid(), signal.SIGINT)
        spawn(interrupt)
        for chunk in backend.stream(TINY, "Hello", max_tokens=50_000):
            read.append(chunk)
        """,
    "in close": """
        backend = Backend()
        began = threading.Event()
        def work():
            began.set()
            time.sleep(1.0)
        def run():
            with contextlib.suppress(BackendClosed):
                backend.run(work)
        spawn(run)
        began.wait(60)
        def interrupt():
            until(lambda: backend._closed)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
        spawn(interrupt)
        backend.close()
        raise AssertionError("close was not interrupted")
        """,
    "inside an event loop": """
        async def main():
            async with Backend() as backend:
                def interrupt():
                    until(lambda: happened(backend, "request.first_token"))
                    os.kill(os.getpid(), signal.SIGINT)
                spawn(interrupt)
                await backend.agenerate(TINY, "Hello", max_tokens=50_000)
        asyncio.run(main())
        """,
}


@pytest.mark.parametrize("moment", INTERRUPTED)
def test_interrupted(moment: str, models: tuple[str, str, str], tmp_path: Path) -> None:
    ended = run_script(tmp_path, INTERRUPTED[moment], *models)
    assert ended.code == -2, ended.err
    assert ended.last_error == "KeyboardInterrupt"
    assert ended.is_clean, ended.err


def test_after_a_caught_interrupt_all_goes_on(models: tuple[str, str, str], tmp_path: Path) -> None:
    body = """
    backend = Backend()
    def interrupt():
        until(lambda: happened(backend, "request.first_token"))
        os.kill(os.getpid(), signal.SIGINT)
    spawn(interrupt)
    try:
        backend.generate(TINY, "Hello", max_tokens=50_000)
    except KeyboardInterrupt:
        print(backend.generate(SCRIPTED, "Hello").text)
        until(lambda: not any(model.active for model in backend.models()))
    """
    ended = run_script(tmp_path, body, *models)
    assert (ended.code, ended.out, ended.err) == (0, TEXT + "\n", "")


def test_interrupted_while_it_waits_at_exit(models: tuple[str, str, str], tmp_path: Path) -> None:
    body = """
    import atexit
    backend = Backend()
    began = threading.Event()
    def work():
        began.set()
        until(lambda: exiting)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    exiting = []
    backend.run(lambda: None)
    atexit.register(lambda: exiting.append(1))  # before ours
    spawn(lambda: backend.run(work))
    began.wait(60)
    """
    ended = run_script(tmp_path, body, *models)
    assert ended.code == 130
    assert ended.is_clean, ended.err
    assert "Traceback" not in ended.err
