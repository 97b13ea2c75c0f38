"""A process that forks or spawns: the child is told or has its own, the parent goes on."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.engine._backend import TEXT
from tests.engine._scripts import run_script

pytestmark = pytest.mark.slow


WAIT_FOR_CHILD = """
def wait(child):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return "it hangs"
"""


def test_forked_after_use(models: tuple[str, str, str], tmp_path: Path) -> None:
    """The child is told, and it leaves cleanly by sys.exit; the parent goes on."""
    body = """
    backend = Backend()
    backend.generate(TINY, "Hello", max_tokens=2)
    child = os.fork()
    if child == 0:
        for use in (
            lambda: backend.generate(TINY, "Hello"),
            lambda: backend.run(lambda: None),
            lambda: backend.models(),
        ):
            try:
                use()
            except BackendClosed as error:
                print("child:", error.hint, flush=True)
        sys.exit(7)
    print("child ended:", wait(child))
    print(backend.generate(SCRIPTED, "Hello").text)
    """
    ended = run_script(tmp_path, WAIT_FOR_CHILD + textwrap.dedent(body), *models)
    assert (ended.code, ended.err) == (0, "")
    *child, status, text = ended.out.splitlines()
    assert len(child) == 3 and all("'spawn'" in line for line in child)
    assert status == "child ended: 7"
    assert text == TEXT


def test_a_child_that_leaves_the_with_block(models: tuple[str, str, str], tmp_path: Path) -> None:
    """It has nothing to wait for: the dispatcher and the engine are the parent's."""
    body = """
    with Backend() as backend:
        backend.generate(TINY, "Hello", max_tokens=2)
        child = os.fork()
        if child == 0:
            sys.exit(7)
        print("child ended:", wait(child))
        print(backend.generate(SCRIPTED, "Hello").text)
    """
    ended = run_script(tmp_path, WAIT_FOR_CHILD + textwrap.dedent(body), *models)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == ["child ended: 7", TEXT]


def test_a_backend_made_in_a_child_forked_after_use(
    models: tuple[str, str, str], tmp_path: Path
) -> None:
    body = """
    Backend().run(lambda: None)
    child = os.fork()
    if child == 0:
        try:
            Backend().generate(TINY, "Hello")
        except BackendClosed:
            os._exit(7)
        os._exit(8)
    print("child ended:", wait(child))
    """
    ended = run_script(tmp_path, WAIT_FOR_CHILD + textwrap.dedent(body), *models)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "child ended: 7\n"


def test_forked_before_use(models: tuple[str, str, str], tmp_path: Path) -> None:
    """Then the child may use MLX, with a backend of its own."""
    body = """
    unused = Backend()
    child = os.fork()
    if child == 0:
        try:
            unused.generate(SCRIPTED, "Hello")
        except BackendClosed:
            print(Backend().generate(SCRIPTED, "Hello").text, flush=True)
        sys.exit(7)
    print("child ended:", wait(child))
    """
    ended = run_script(tmp_path, WAIT_FOR_CHILD + textwrap.dedent(body), *models)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [TEXT, "child ended: 7"]


def test_a_spawned_child_has_its_own(models: tuple[str, str, str], tmp_path: Path) -> None:
    body = """
    import multiprocessing

    def answer(model, answers):
        answers.put(Backend().generate(model, "Hello").text)

    if __name__ == "__main__":
        backend = Backend()
        backend.generate(TINY, "Hello", max_tokens=2)
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        child = context.Process(target=answer, args=(SCRIPTED, answers))
        child.start()
        print(answers.get(timeout=60))
        child.join()
        print(child.exitcode)
    """
    ended = run_script(tmp_path, body, *models)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [TEXT, "0"]
